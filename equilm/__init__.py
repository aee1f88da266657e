"""Equilibrium language models: sequence models whose layers are iterated to a fixed point.

    model = equilm.LanguageModel(equilm.preset("mamba2-130m"), generator=generator)
    z = equilm.fixed_point(lambda z: torch.tanh(z @ w + x), torch.zeros(8, 64)).value

Importing it has no effect but defining names. Read `nn/mixer.py` first; from there each file names
the next, over model and solver to training and decoding.
"""

from equilm.decode.engine import Engine
from equilm.decode.generate import generate
from equilm.decode.request import Request, Sampling
from equilm.hf.convert import convert, load
from equilm.nn.equilibrium import Equilibrium, EquilibriumConfig, observed
from equilm.nn.model import LanguageModel, ModelConfig
from equilm.nn.presets import preset
from equilm.solve import (
    Anderson,
    Broyden,
    Implicit,
    Phantom,
    Picard,
    Solve,
    Status,
    fixed_point,
)

__version__ = "0.1.0"

__all__ = [
    "Anderson",
    "Broyden",
    "Engine",
    "Equilibrium",
    "EquilibriumConfig",
    "Implicit",
    "LanguageModel",
    "ModelConfig",
    "Phantom",
    "Picard",
    "Request",
    "Sampling",
    "Solve",
    "Status",
    "convert",
    "fixed_point",
    "generate",
    "load",
    "observed",
    "preset",
]
