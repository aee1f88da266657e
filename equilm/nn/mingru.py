"""minGRU: h_t = (1 − g_t) h_{t−1} + g_t c_t, gate and candidate from the input alone.

Its state is `expand` · D numbers. Read `linear_attention.py` next.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from equilm.nn.linear import Linear, VariationalDropout
from equilm.nn.mixer import Mixer
from equilm.ops.recurrence import recurrence, within


@dataclass(frozen=True, kw_only=True)
class MinGRUConfig:
    """Sizes of a minGRU mixer: its state is `expand` · D wide."""

    kind: Literal["mingru"] = "mingru"
    expand: int = 1

    def __post_init__(self) -> None:
        if self.expand < 1:
            raise ValueError(f"expand: expected an integer >= 1, got {self.expand}")


class MinGRUState(NamedTuple):
    """The hidden state, in float32."""

    hidden_BI: Tensor


class MinGRU(Mixer):
    """[gate | candidate] = W x + inject; one gated linear recurrence; project back.

    Source: Feng et al. 2024, arXiv 2410.01201.
    """

    def __init__(
        self, config: MinGRUConfig, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.inner, self.inject_width = config.expand * width, 2 * config.expand * width
        self.in_proj = Linear(width, self.inject_width, weight_norm=weight_norm)
        self.out_proj = Linear(self.inner, width, weight_norm=weight_norm)
        self.dropout = VariationalDropout(dropout)

    def init_state(self, batch: int, capacity: int) -> MinGRUState:
        """Zeros; the state does not grow with `capacity`."""
        like = next(self.parameters())
        dtype = torch.promote_types(like.dtype, torch.float32)
        return MinGRUState(like.new_zeros(batch, self.inner, dtype=dtype))

    def forward(
        self,
        x_BTD: Tensor,
        state: MinGRUState | None = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
    ) -> tuple[Tensor, MinGRUState]:
        """See `Mixer`."""
        (hidden_BI,) = state if state is not None else self.init_state(len(x_BTD), 0)
        projected_BTE = self.in_proj(x_BTD)
        if inject_BTE is not None:
            projected_BTE = projected_BTE + inject_BTE
        gate_BTI, candidate_BTI = projected_BTE.to(hidden_BI.dtype).split(self.inner, dim=-1)
        # 1 − σ(g) is σ(−g), without a loss of digits.
        decay_BTI, input_BTI = within(
            torch.sigmoid(-gate_BTI), torch.sigmoid(gate_BTI) * candidate_BTI, valid_B
        )
        h_BTI, hidden_BI = recurrence(decay_BTI, input_BTI, hidden_BI)
        return self.dropout(self.out_proj(h_BTI)), MinGRUState(hidden_BI)

    def flops_per_token(self, length: int) -> float:
        """The projections, and the recurrence."""
        return 2.0 * (3 * self.in_proj.inputs * self.inner + 2 * self.inner)
