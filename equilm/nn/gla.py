"""Gated linear attention: every key channel forgets at a rate that the token chooses.

    [q | k | v | gate | r] = W_in x + inject,   a = σ(W_a r + b_a)^(1/τ) in (0, 1) per key channel
    S_t = diag(a_t) S_{t−1} + k_t v_tᵀ,   y_t = S_tᵀ q_t / √N,   W_out (RMSNorm(y) · SiLU(gate))

The state has H · N · P numbers with N = D / 2H and P = D / H. Read `hgrn2.py` next.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.nn.key_value import KeyValue, split_evenly
from equilm.nn.linear import Linear
from equilm.nn.norm import RMSNorm
from equilm.ops.linear_attention import linear_attention, masked


@dataclass(frozen=True, kw_only=True)
class GLAConfig:
    """Sizes of a gated linear attention mixer; the defaults are the published ones.

    Args:
        heads: H; keys are D / 2H wide, values D / H.
        rank: Width of r, through which the decays are made.
        temperature: τ > 0: the larger, the slower a fresh model forgets.
        norm_eps: Added to the mean square in the norm of each head, > 0.
    """

    kind: Literal["gla"] = "gla"
    heads: int = 4
    rank: int = 16
    temperature: float = 16.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank: expected an integer >= 1, got {self.rank}")
        for name in ("temperature", "norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number > 0, got {getattr(self, name)}")


class GLA(KeyValue):
    """Gated linear attention.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether the projections carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Raises:
        ValueError: If the heads do not divide evenly.

    Source: Yang et al. 2023, arXiv 2312.06635.
    """

    def __init__(
        self, config: GLAConfig, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        keys = split_evenly("width / 2", width // 2, config.heads)
        values = split_evenly("width", width, config.heads)
        super().__init__(
            width,
            heads=config.heads,
            keys=keys,
            values=values,
            norm=RMSNorm(values, eps=config.norm_eps),
            gated=True,
            others=(config.rank,),
            weight_norm=weight_norm,
            dropout=dropout,
        )
        self.config = config
        self.decay_proj = Linear(
            config.rank, config.heads * keys, bias=True, weight_norm=weight_norm
        )

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
        """See `KeyValue`."""
        wide = torch.promote_types(q_BTHN.dtype, torch.float32)
        decay_BTHN = self.decay_proj(others[0]).to(wide).unflatten(-1, (self.heads, -1))
        log_decay_BTHN = F.logsigmoid(decay_BTHN) / self.config.temperature
        k_BTHN, log_decay_BTHN = masked(k_BTHN, log_decay_BTHN, valid_B, starts_BT)
        return linear_attention(
            q_BTHN * self.keys**-0.5, k_BTHN, v_BTHP, log_decay_BTHN, memory_BHNP
        )

    def flops_per_token(self, length: int) -> float:
        """See `KeyValue`, and the making of decays."""
        return super().flops_per_token(length) + 2.0 * self.decay_proj.effective().numel()
