"""RMS norms with their learned weight; the arithmetic is in `equilm/ops/norm.py`."""

import torch
from torch import Tensor, nn

from equilm.nn.linear import Prepared
from equilm.ops.fp8 import Scaled, norm_scale
from equilm.ops.norm import add_rms_norm


class _Norm(Prepared):
    """A weight, and the scale of the output where a projection takes it in 8 bits."""

    def __init__(self, width: int, *, eps: float, before_projection: bool) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps
        self.before_projection = before_projection
        self._scale: Tensor | None = None

    def is_prepared(self) -> bool:
        return True

    def prepare(self) -> None:
        """Nothing is made for evaluations in full."""

    def release(self) -> None:
        """Nothing to forget."""

    def lower(self) -> None:
        """Bound the output."""
        if self.before_projection:
            self._scale = norm_scale(self.weight.detach())

    def lift(self) -> None:
        """Forget the bound."""
        self._scale = None

    def scale(self) -> Tensor | None:
        """Return the scale to put out 8 bits with, or `None`: gradients want more."""
        return None if torch.is_grad_enabled() else self._scale


class RMSNorm(_Norm):
    """x / sqrt(mean(x²) + eps) · weight, computed in float32.

    Args:
        width: D.
        eps: Added to the mean square.
        before_projection: Whether `after` goes into a projection that takes 8 bits.
    """

    def __init__(self, width: int, *, eps: float = 1e-5, before_projection: bool = False) -> None:
        super().__init__(width, eps=eps, before_projection=before_projection)

    def forward(self, x_BTD: Tensor, y_BTD: Tensor | None = None) -> Tensor:
        """Return the normalised x (+ y) in float32 or wider."""
        return add_rms_norm(x_BTD, y_BTD, self.weight, eps=self.eps)[1]

    def after(self, r_BTD: Tensor, y_BTD: Tensor | None) -> tuple[Tensor, Tensor | Scaled]:
        """Return the sum of r and y, and its norm in the type that a projection computes in."""
        scale, dtype = self.scale(), compute_dtype(r_BTD)
        r_BTD, a_BTD = add_rms_norm(
            r_BTD, y_BTD, self.weight, eps=self.eps, dtype=dtype, scale=scale
        )
        return r_BTD, a_BTD if scale is None else Scaled(a_BTD, scale)


class GatedRMSNorm(_Norm):
    """The weight of RMSNorm(y · SiLU(gate)); the arithmetic is part of `gated_scan`."""

    def __init__(self, width: int, *, eps: float = 1e-5) -> None:
        super().__init__(width, eps=eps, before_projection=True)


def compute_dtype(x_BTD: Tensor) -> torch.dtype | None:
    """The type of products under autocast; `None` outside."""
    device = x_BTD.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
