"""Models and inputs for timing, made on the device itself: a CPU would draw for a minute."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from equilm.nn.block import Stack
from equilm.nn.capture import Capture
from equilm.nn.equilibrium import Equilibrium
from equilm.nn.model import LanguageModel, ModelConfig
from equilm.solve.gradient import Phantom
from equilm.solve.iterate import Solve


def build(config: ModelConfig, device: torch.device) -> LanguageModel:
    """Return a model with random initial values, without dropout, run as a trainer runs it."""
    with device:
        generator = torch.Generator(device).manual_seed(0)
        model = LanguageModel(replace(config, dropout=0.0), generator=generator)
    if device.type == "cuda":
        model.capture = Capture(model.core)
    return model


def set_depth(
    model: LanguageModel, depth: tuple[int, int] | None, precision: Literal["full", "fp8"] = "full"
) -> None:
    """Make exactly s sweeps and k phantom steps run: no tolerance is small enough to stop early."""
    if isinstance(model.core, Equilibrium):
        assert depth is not None
        sweeps, phantom = depth
        model.core.solve = Solve(tolerance=0.0, max_steps=sweeps, cycle=None, precision=precision)
        model.core.gradient = Phantom(steps=phantom)


def stack_of(model: LanguageModel) -> Stack:
    """Return the layers of a model, implicit or not."""
    body = model.core.body if isinstance(model.core, Equilibrium) else model.core
    assert isinstance(body, Stack)
    return body


def random_tokens(model: LanguageModel, shape: tuple[int, int], device: torch.device) -> Tensor:
    """Return uniform tokens, the same each time."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.randint(model.vocab_size, shape, generator=generator, device=device)


def noise(
    shape: tuple[int, ...], device: torch.device, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return normal numbers, the same each time."""
    generator = torch.Generator(device).manual_seed(1)
    return torch.randn(shape, generator=generator, device=device, dtype=dtype)
