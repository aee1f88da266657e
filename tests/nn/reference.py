"""A mixer of a language model, and both of a pair of computations with all their gradients."""

from typing import Any

import torch
from torch import Tensor

from equilm.nn.mixer import Mixer
from equilm.nn.model import LanguageModel, ModelConfig
from tests.nn.build import VOCAB, WIDTH
from tests.tolerance import assert_close


def mixer_of(config: Any) -> Any:
    """Return the random mixer of a model of one layer in float64."""
    model_config = ModelConfig(vocab_size=VOCAB, width=WIDTH, num_layers=1, mixer=config)
    model = LanguageModel(model_config, generator=torch.Generator().manual_seed(0)).double()
    mixer = model.core.get_submodule("layers.0.mixer")
    assert isinstance(mixer, Mixer)
    return mixer


def assert_same(
    mixer: Mixer, got: list[Tensor], expected: list[Tensor], inputs: list[Tensor]
) -> None:
    """Compare outputs, and the gradients of `inputs` and of all parameters."""
    leaves, gradients = [*inputs, *mixer.parameters()], []
    for outs in (got, expected):
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(out.shape, generator=generator, dtype=out.dtype) for out in outs]
        parts = [(out * weight).sum() for out, weight in zip(outs, weights, strict=True)]
        gradients.append(torch.autograd.grad(torch.stack(parts).sum(), leaves))
    for one, other in zip(got, expected, strict=True):
        assert_close("mixer", one, other)
    for one, other in zip(*gradients, strict=True):
        assert_close("gradient", one, other)
