"""SRU, the simple recurrent unit: gates with peepholes, a highway, no matrix in the recurrence.

    [u | f | r] = W_in x + inject
    f_t, r_t = σ(f + v_f c_{t−1} + b_f), σ(r + v_r c_{t−1} + b_r)
    c_t = f_t c_{t−1} + (1 − f_t) u,   y = W_out (r_t c_t + (1 − r_t) √3 x)

The recurrence is `equilm/ops/sru.py`. Read `mingru.py` next.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from equilm.nn.linear import Linear, VariationalDropout
from equilm.nn.mixer import Mixer
from equilm.ops.sru import peephole_recurrence

HIGHWAY = math.sqrt(3)  # makes inputs and outputs alike in size where gates start half open


@dataclass(frozen=True, kw_only=True)
class SRUConfig:
    """An SRU mixer, whose cell is as wide as its input: it has no other sizes."""

    kind: Literal["sru"] = "sru"


class SRUState(NamedTuple):
    """The cell, in float32."""

    cell_BD: Tensor


class SRU(Mixer):
    """Simple recurrent unit.

    Args:
        config: Nothing but its kind.
        width: D.
        weight_norm: Whether projections carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Source: Lei et al. 2018, arXiv 1709.02755; the projection out is that of all mixers here.
    """

    def __init__(
        self, config: SRUConfig, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.config, self.width, self.inject_width = config, width, 3 * width
        self.in_proj = Linear(width, 3 * width, weight_norm=weight_norm)
        self.peep_f = nn.Parameter(torch.empty(width))
        self.peep_r = nn.Parameter(torch.empty(width))
        self.bias_f = nn.Parameter(torch.empty(width))
        self.bias_r = nn.Parameter(torch.empty(width))
        self.out_proj = Linear(width, width, weight_norm=weight_norm)
        self.dropout = VariationalDropout(dropout)

    def initialise_own(self, generator: torch.Generator) -> None:
        """Draw peepholes from U(−1, 1) / sqrt(D); biases are 0."""
        for peep in (self.peep_f, self.peep_r):
            drawn_D = 2 * torch.rand(self.width, generator=generator) - 1
            peep.copy_(drawn_D / math.sqrt(self.width))
        self.bias_f.zero_()
        self.bias_r.zero_()

    def init_state(self, batch: int, capacity: int) -> SRUState:
        """Zeros; the state does not grow with `capacity`."""
        dtype = torch.promote_types(self.bias_f.dtype, torch.float32)
        return SRUState(self.bias_f.new_zeros(batch, self.width, dtype=dtype))

    def forward(
        self,
        x_BTD: Tensor,
        state: SRUState | None = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
    ) -> tuple[Tensor, SRUState]:
        """See `Mixer`."""
        (cell_BD,) = state if state is not None else self.init_state(len(x_BTD), 0)
        projected_BTE = self.in_proj(x_BTD)
        if inject_BTE is not None:
            projected_BTE = projected_BTE + inject_BTE
        input_BTD, f_BTD, r_BTD = projected_BTE.to(cell_BD.dtype).split(self.width, dim=-1)
        f_BTD = f_BTD + self.bias_f
        if valid_B is not None:
            valid_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device) < valid_B[:, None]
            f_BTD = f_BTD.where(valid_BT[..., None], torch.inf)
        cell_BSD = peephole_recurrence(input_BTD, f_BTD, self.peep_f.to(cell_BD.dtype), cell_BD)
        r_BTD = torch.sigmoid(r_BTD + self.bias_r + self.peep_r * cell_BSD[:, :-1])
        h_BTD = torch.lerp(HIGHWAY * x_BTD.to(cell_BD.dtype), cell_BSD[:, 1:], r_BTD)
        return self.dropout(self.out_proj(h_BTD)), SRUState(cell_BSD[:, -1])

    def flops_per_token(self, length: int) -> float:
        """The projections, both gates, the recurrence and the highway."""
        return 2.0 * (4 * self.width**2 + 6 * self.width)
