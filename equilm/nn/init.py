"""Initial values, one table for all models.

| parameter                    | value                                                         |
|------------------------------|---------------------------------------------------------------|
| embedding, untied head       | N(0, 0.02²)                                                   |
| projections, taps, injection | U(−1, 1) / sqrt(fan in); weight norm starts at g = ‖v‖         |
| projections into the stream  | the same / sqrt(number of them), as in Mamba and GPT-2        |
| gate of a gated stream       | 0                                                             |
| biases                       | 0 (injection), U(−1, 1) / sqrt(W) (taps)                      |
| norm weights                 | 1                                                             |
| what mixers have beside      | `initialise_own` of the mixer                                 |

Source: arXiv 2405.21060 and its code for Mamba2; arXiv 2502.07827.
"""

import math

import torch
from torch import Tensor, nn

from equilm.nn.linear import DepthwiseTaps, Linear, Weight
from equilm.nn.mixer import Mixer
from equilm.nn.norm import GatedRMSNorm, RMSNorm

INTO_STREAM = ("out_proj", "w2")


@torch.no_grad()
def initialise(model: nn.Module, *, generator: torch.Generator) -> None:
    """Set every parameter of a `LanguageModel` in place, as the table says."""
    scale = stream_scale(model)
    for leaf in model.parameters():
        leaf.view(-1)[:1] = torch.nan
    for name, module in model.named_modules():
        initialise_part(
            module, scale=scale if name.endswith(INTO_STREAM) else 1.0, generator=generator
        )
    for name, table in model.named_parameters(recurse=False):
        assert name in ("embedding", "head"), f"{name} is not in the table"
        table.copy_(0.02 * torch.randn(table.shape, generator=generator))
    for name, leaf in model.named_parameters():
        assert not leaf.view(-1)[:1].isnan().any(), f"{name}: set by no `initialise_own`"


def stream_scale(model: nn.Module) -> float:
    """Return 1 / sqrt(projections into the stream)."""
    into_stream = [name for name, _ in model.named_modules() if name.endswith(INTO_STREAM)]
    return 1 / math.sqrt(max(len(into_stream), 1))


@torch.no_grad()
def initialise_part(module: nn.Module, *, scale: float, generator: torch.Generator) -> None:
    """Set the parameters that are the module's own, not its children's, in place.

    Args:
        module: Any module below a `LanguageModel`.
        scale: Multiplies a projection: `stream_scale` for one named in INTO_STREAM, else 1.
        generator: Draws the values.
    """
    if isinstance(module, Weight):
        _init_weight(module, scale, generator)
    if isinstance(module, DepthwiseTaps):
        width = module.effective().shape[-1]
        module.bias.copy_(_uniform(module.bias.shape, 1 / math.sqrt(width), generator))
    elif isinstance(module, Linear) and module.bias is not None:
        module.bias.zero_()
    elif isinstance(module, RMSNorm | GatedRMSNorm):
        module.weight.fill_(1.0)
    elif isinstance(module, Mixer):
        module.initialise_own(generator)


def _init_weight(module: Weight, scale: float, generator: torch.Generator) -> None:
    shape = (module.weight_v if module.weight_norm else module.weight).shape
    fan_in = math.prod(shape[1:])
    module.assign(_uniform(shape, scale / math.sqrt(fan_in), generator))


def _uniform(shape: torch.Size, bound: float, generator: torch.Generator) -> Tensor:
    return bound * (2 * torch.rand(shape, generator=generator) - 1)
