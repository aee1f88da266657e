"""RMS norms with their learned weight; the arithmetic is in `equilm/ops/norm.py`."""

import torch
from torch import Tensor, nn

from equilm.ops.norm import add_rms_norm, gated_rms_norm


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight, computed in float32."""

    def __init__(self, width: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the normalised x_BTD in float32 or wider."""
        return add_rms_norm(x_BTD, None, self.weight, eps=self.eps)[1]

    def after(self, r_BTD: Tensor, y_BTD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the sum of r and y, and its norm in the type that a projection computes in."""
        dtype = compute_dtype(r_BTD)
        return add_rms_norm(r_BTD, y_BTD, self.weight, eps=self.eps, dtype=dtype)


class GatedRMSNorm(nn.Module):
    """RMSNorm(y · SiLU(gate + add)) over each of `groups` equal parts, computed in float32."""

    def __init__(self, width: int, *, groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.groups, self.eps = nn.Parameter(torch.ones(width)), groups, eps

    def forward(self, y_BTD: Tensor, gate_BTD: Tensor, add_BTD: Tensor | None = None) -> Tensor:
        """Return the normalised y_BTD in the type that a projection computes in."""
        return gated_rms_norm(
            y_BTD,
            gate_BTD,
            self.weight,
            add_BTD=add_BTD,
            groups=self.groups,
            eps=self.eps,
            dtype=compute_dtype(y_BTD),
        )


def compute_dtype(x_BTD: Tensor) -> torch.dtype | None:
    """The type of products under autocast; `None` outside."""
    device = x_BTD.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
