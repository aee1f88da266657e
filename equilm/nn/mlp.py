"""The gated MLP of Llama: w2(SiLU(w1 a) · (w3 a)). Read `block.py` next."""

import torch.nn.functional as F
from torch import Tensor, nn

from equilm.nn.linear import Linear


class GatedMLP(nn.Module):
    """w2(SiLU(w1 a) · (w3 a)), no bias.

    Args:
        width: D.
        hidden: Width between.
        weight_norm: Whether projections carry weight norm.

    Source: Shazeer 2020, arXiv 2002.05202.
    """

    def __init__(self, width: int, hidden: int, *, weight_norm: bool = False) -> None:
        super().__init__()
        self.w1 = Linear(width, hidden, weight_norm=weight_norm)
        self.w3 = Linear(width, hidden, weight_norm=weight_norm)
        self.w2 = Linear(hidden, width, weight_norm=weight_norm)

    def forward(self, a_BTD: Tensor) -> Tensor:
        """Return y_BTD."""
        return self.w2(F.silu(self.w1(a_BTD)) * self.w3(a_BTD))

    def flops_per_token(self) -> float:
        """Three projections."""
        return 2.0 * 3 * self.w1.inputs * self.w1.outputs
