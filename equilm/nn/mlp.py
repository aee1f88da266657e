"""The gated MLP of Llama: w2(SiLU(w1 a) · (w3 a)). Read `block.py` next."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from equilm.nn.joined import Joined
from equilm.nn.linear import Linear
from equilm.ops.swiglu import swiglu_linear


@dataclass(frozen=True, kw_only=True)
class GatedMLPConfig:
    """Sizes of a gated MLP.

    Args:
        hidden: Width between.
    """

    kind: Literal["gated"] = "gated"
    hidden: int

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ValueError(f"hidden: expected an integer >= 1, got {self.hidden}")


class GatedMLP(nn.Module):
    """w2(SiLU(w1 a) · (w3 a)), no bias.

    Args:
        width: D.
        hidden: Width between.
        weight_norm: Whether projections carry weight norm.

    Source: Shazeer 2020, arXiv 2002.05202.
    """

    takes_scaled = True  # whether a may come in 8 bits (`equilm/ops/fp8.py`)

    def __init__(self, width: int, hidden: int, *, weight_norm: bool = False) -> None:
        super().__init__()
        self.w1 = Linear(width, hidden, weight_norm=weight_norm)
        self.w3 = Linear(width, hidden, weight_norm=weight_norm)
        self.w2 = Linear(hidden, width, weight_norm=weight_norm)
        # Padded rows of w1 and w3 give zeros, which meet padded columns of w2.
        self.up = Joined(self.w1, self.w3, tile=16, after_norm=True)
        self.down = Joined(self.w2, tile=16, dim=1)

    def forward(self, a_BTD: Tensor) -> Tensor:
        """Return y_BTD."""
        return swiglu_linear(self.up(a_BTD), self.down.effective())

    def flops_per_token(self) -> float:
        """Three projections."""
        return 2.0 * 3 * self.w1.inputs * self.w1.outputs
