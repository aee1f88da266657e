"""RMS norms with their learned weight; the arithmetic is in `equilm/ops/norm.py`."""

import torch
from torch import Tensor, nn

from equilm.ops.norm import gated_rms_norm, rms_norm


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight, in float32."""

    def __init__(self, width: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the normalised x_BTD."""
        return rms_norm(x_BTD, self.weight, eps=self.eps)


class GatedRMSNorm(RMSNorm):
    """RMSNorm(y · SiLU(gate)) over each of `groups` equal parts, in float32."""

    def __init__(self, width: int, *, groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__(width, eps=eps)
        self.groups = groups

    def forward(self, y_BTD: Tensor, gate_BTD: Tensor) -> Tensor:  # type: ignore[override]
        """Return the normalised y_BTD."""
        return gated_rms_norm(y_BTD, gate_BTD, self.weight, groups=self.groups, eps=self.eps)
