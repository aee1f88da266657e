"""An explicit model becomes an implicit one that first answers exactly as it did.

    F(z, x) = stack(x + γ ⊙ z, W · RMSNorm(x) + b),   γ = 0, W = 0, b = 0

F does not look at z yet: its fixed point is the explicit model's output, found in one evaluation
and confirmed by the next, at every tolerance and in every mode. γ, W and b have gradients from the
first step on, so training makes of it what it will. Read `convert.py` first.

Not so: letting z enter as the stream itself and starting it at the embedding. One evaluation gives
the explicit output there too, but the fixed point of that F has forgotten which token it is for.
"""

import os
from dataclasses import replace

import torch
from torch import Tensor

from equilm.hf.convert import load
from equilm.nn.equilibrium import EquilibriumConfig
from equilm.nn.folder import assemble, save_model
from equilm.nn.model import LanguageModel

STACK = "core.body.stack."  # what was "core."


def retrofit(model: LanguageModel) -> LanguageModel:
    """Return an implicit model with the outputs of an explicit one; they share their parameters.

    Args:
        model: Explicit, of any mixer; not changed.

    Raises:
        ValueError: If it is implicit already, or of a mixer without an injection.
    """
    if model.config.equilibrium is not None:
        raise ValueError("implicit: expected an explicit model, got an implicit one")
    equilibrium = EquilibriumConfig(stream="gated")
    config = replace(model.config, equilibrium=equilibrium)
    tensors = {_renamed(name): leaf.detach() for name, leaf in model.state_dict().items()}
    with torch.device("meta"):
        wanted = LanguageModel(config).state_dict()
    like = model.embedding
    for name in wanted.keys() - tensors.keys():
        tensors[name] = _neutral(name, wanted[name].shape).to(like.device, like.dtype)
    retrofitted = assemble(config, tensors, where="retrofit")
    return retrofitted.train(model.training)


def convert_implicit(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write what `load` makes of `source`, retrofitted, as a model folder.

    Raises:
        CheckpointError: As `load`; also if `target` is there and is no model folder.
        ValueError: As `retrofit`.
        OSError: If it could not be written; what was there is as it was.
    """
    save_model(retrofit(load(source)), target)


def _renamed(name: str) -> str:
    return STACK + name.removeprefix("core.") if name.startswith("core.") else name


def _neutral(name: str, shape: torch.Size) -> Tensor:
    """The value with which a new parameter has no part in the output, yet a gradient."""
    if name.endswith("injection_norm.weight"):
        return torch.ones(shape)
    if name.endswith("weight_v"):
        # Its norm is divided by, and its length, weight_g, is zero.
        bound = shape[-1] ** -0.5
        return torch.empty(shape).uniform_(
            -bound, bound, generator=torch.Generator().manual_seed(0)
        )
    return torch.zeros(shape)
