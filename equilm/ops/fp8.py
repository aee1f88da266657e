"""Products in 8 bits (e4m3), for sweeps whose rounding the next sweeps repair.

    value ≈ data · scale,    y = (x.data @ w.dataᵀ) · x.scale · w.scale

What an RMS norm puts out is at most sqrt(D) · max|weight| by construction, so its scale is known
before its values are and nothing has to be searched for a maximum. Read `equilm/nn/linear.py` next.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 448.0  # of e4m3
TILE = 16  # both sides of a weight must be multiples of it


class Scaled(NamedTuple):
    """A tensor in e4m3 and what it has to be multiplied with."""

    data: Tensor  # (..., D) float8_e4m3fn
    scale: Tensor  # () float32, > 0; (E,) of a weight by rows


def supported(device: torch.device) -> bool:
    """Return whether the device multiplies e4m3 matrices itself."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def norm_scale(weight_D: Tensor) -> Tensor:
    """Return the scale with which no output of an RMS norm with this weight overflows."""
    return _scale(weight_D.abs().amax() * weight_D.numel() ** 0.5)


def to_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    """Return x / scale in e4m3, saturated."""
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def quantise(weight_ED: Tensor) -> Scaled:
    """Return a weight with one scale, its rows padded with zeros to a multiple of `TILE`.

    Raises:
        ValueError: If D is no multiple of `TILE`.
    """
    outputs, inputs = weight_ED.shape
    if inputs % TILE:
        raise ValueError(f"precision: fp8 expects widths in multiples of {TILE}, got {inputs}")
    scale = _scale(weight_ED.abs().amax())
    return Scaled(to_e4m3(F.pad(weight_ED, (0, 0, 0, -outputs % TILE)), scale), scale)


def by_rows(weight_ED: Tensor) -> Scaled:
    """Return a weight with a scale for each output, the least power of two with which it fits.

    What it stands for is exact in bf16 as well, so that whoever reads either reads the same.
    """
    largest_E = weight_ED.detach().float().abs().amax(1)
    _, exponent_E = torch.frexp(largest_E / LARGEST)
    # From its bits, since a device's power of two may be off by a last digit.
    scale_E = ((exponent_E.clamp(min=-126) + 127) << 23).view(torch.float32)
    return Scaled(to_e4m3(weight_ED.detach(), scale_E[:, None]), scale_E)


def widened(weight: Scaled, dtype: torch.dtype) -> Tensor:
    """Return what `by_rows` made of a weight, in another type."""
    return (weight.data.float() * weight.scale[:, None]).to(dtype)


def linear(x: Scaled, weight: Scaled, outputs: int, dtype: torch.dtype) -> Tensor:
    """y = W x.

    Args:
        x: (..., D).
        weight: (E, D), from `quantise`.
        outputs: How many of the E outputs to return.
        dtype: Of y.

    Returns:
        (..., outputs); a view of more, if E was padded.
    """
    rows = x.data.flatten(0, -2)
    if rows.is_cuda:
        y = torch._scaled_mm(
            rows, weight.data.t(), x.scale, weight.scale, out_dtype=dtype, use_fast_accum=True
        )
    else:
        y = (rows.float() @ weight.data.float().t() * (x.scale * weight.scale)).to(dtype)
    return y.unflatten(0, x.data.shape[:-1])[..., :outputs]


def _scale(largest: Tensor) -> Tensor:
    # A row of zeros must not divide by zero.
    return (largest.float() / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
