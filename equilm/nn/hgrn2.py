"""HGRN2: a gated linear recurrence with a larger state, whose keys are what the gate lets go.

    [q | f | i] = W_in x + inject,   a = γ + (1 − γ) σ(f)   per key channel
    S_t = diag(a_t) S_{t−1} + (1 − a_t) i_tᵀ,   y_t = S_tᵀ SiLU(q_t),   W_out RMSNorm(y)

The state has H · N · P numbers with N = P = D / H. Read `deltanet.py` next.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.nn.key_value import KeyValue, split_evenly
from equilm.nn.norm import RMSNorm
from equilm.ops.linear_attention import linear_attention, masked


@dataclass(frozen=True, kw_only=True)
class HGRN2Config:
    """Sizes of an HGRN2 mixer; published: heads of width 128.

    Args:
        heads: H, of width D / H.
        lower_bound: γ in [0, 1), the least that a token keeps of the state. In the source it is
            learned and rises with depth; here it is one number of all layers.
        norm_eps: Added to the mean square in the norm of each head, > 0.
    """

    kind: Literal["hgrn2"] = "hgrn2"
    heads: int = 2
    lower_bound: float = 0.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 <= self.lower_bound < 1:
            raise ValueError(f"lower_bound: expected a number in [0, 1), got {self.lower_bound}")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps: expected a number > 0, got {self.norm_eps}")


class HGRN2(KeyValue):
    """Hierarchically gated linear recurrence with state expansion.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether the projections in and out carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Raises:
        ValueError: If the heads do not divide evenly.

    Source: Qin et al. 2024, arXiv 2404.07904.
    """

    def __init__(
        self, config: HGRN2Config, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        size = split_evenly("width", width, config.heads)
        super().__init__(
            width,
            heads=config.heads,
            keys=size,
            values=size,
            norm=RMSNorm(size, eps=config.norm_eps),
            gated=False,
            weight_norm=weight_norm,
            dropout=dropout,
        )
        self.config = config

    def remember(
        self,
        q_BTHN: Tensor,
        k_BTHN: Tensor,
        v_BTHP: Tensor,
        others: list[Tensor],
        memory_BHNP: Tensor | None,
        valid_B: Tensor | None,
        starts_BT: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """See `KeyValue`; the gate f comes where others have keys."""
        gate_BTHN = k_BTHN.to(torch.promote_types(k_BTHN.dtype, torch.float32))
        bound, rest = self.config.lower_bound, math.log1p(-self.config.lower_bound)
        log_bound = gate_BTHN.new_full((), math.log(bound) if bound else -math.inf)
        # By logarithms, since 1 − (1 − a) would lose the digits of a small a.
        log_decay_BTHN = torch.logaddexp(log_bound, F.logsigmoid(gate_BTHN) + rest)
        k_BTHN = (1 - bound) * torch.sigmoid(-gate_BTHN)
        k_BTHN, log_decay_BTHN = masked(k_BTHN, log_decay_BTHN, valid_B, starts_BT)
        return linear_attention(F.silu(q_BTHN), k_BTHN, v_BTHP, log_decay_BTHN, memory_BHNP)
