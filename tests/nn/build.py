"""Small random models of every kind, contractive where they are iterated."""

from typing import Any

import torch
from torch import nn

from equilm.nn.attention import AttentionConfig
from equilm.nn.equilibrium import EquilibriumConfig
from equilm.nn.linear import Linear
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import MIXERS, LanguageModel, ModelConfig
from equilm.solve import Phantom, Solve

WIDTH = 8

# Small configurations with every sharing of heads; other rows of MIXERS take their defaults.
SMALL: dict[str, Any] = {
    "mamba2": Mamba2Config(expand=2, head_width=4, state_size=3, groups=2),
    "attention": AttentionConfig(heads=2, kv_heads=1, theta=100.0),
}


def language_model(kind: str, *, seed: int = 0, **settings: Any) -> LanguageModel:
    """Return a random model of two layers with MLPs in float64."""
    config = ModelConfig(
        **{
            "vocab_size": 11,
            "width": WIDTH,
            "num_layers": 2,
            "mixer": SMALL[kind] if kind in SMALL else MIXERS[kind][0](),
            "mlp_hidden": 12,
            **settings,
        }
    )
    return LanguageModel(config, generator=torch.Generator().manual_seed(seed)).double()


def equilibrium_model(
    kind: str, *, seed: int = 0, gradient: Any = None, solve: Solve | None = None, **settings: Any
) -> LanguageModel:
    """Return a random implicit model whose F contracts."""
    config = EquilibriumConfig(
        solve=solve or Solve(tolerance=1e-12, max_steps=300, cycle=None),
        gradient=gradient or Phantom(),
    )
    settings = {"weight_norm": True, "equilibrium": config, **settings}
    model = language_model(kind, seed=seed, **settings)
    make_contractive(model)
    return model


@torch.no_grad()
def make_contractive(model: nn.Module) -> None:
    """Let the injection outweigh z inside the layers, and the layers outweigh z behind them."""
    for name, part in model.named_modules():
        if isinstance(part, Linear):
            into_stream = name.endswith(("out_proj", "w2"))
            scale = 6.0 if into_stream or name.endswith("injection") else 0.3
            part.assign(scale * part.effective())
