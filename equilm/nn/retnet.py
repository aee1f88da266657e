"""RetNet's retention: linear attention that turns and fades at fixed rates, one a head.

    [q | k | v | gate] = W_in x + inject,   γ_h = 1 − 2^(−5−h)
    S_t = γ R S_{t−1} + k_t v_tᵀ,   y_t = S_tᵀ q_t / √N,   W_out (RMSNorm(y) · SiLU(gate))

R turns pairs of key channels as rotary embeddings do. The state is kept as the next token sees it,
so that it knows no positions. It has H · N · P numbers with N = D / H and P = 2 D / H. Read
`gla.py` next.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from equilm.nn.key_value import KeyValue, split_evenly
from equilm.nn.norm import RMSNorm
from equilm.ops.linear_attention import linear_attention, masked


@dataclass(frozen=True, kw_only=True)
class RetNetConfig:
    """Sizes of a retention mixer; the defaults are the published ones.

    Args:
        heads: H; keys are D / H wide, values `expand` times that. Published: D / 256 heads, 8 of
            them at 1.3b.
        expand: P / N.
        theta: Base of the rotary frequencies.
        norm_eps: Added to the mean square in the norm of each head, > 0.
    """

    kind: Literal["retnet"] = "retnet"
    heads: int = 8
    expand: int = 2
    theta: float = 10_000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.expand < 1:
            raise ValueError(f"expand: expected an integer >= 1, got {self.expand}")
        for name in ("theta", "norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number > 0, got {getattr(self, name)}")


class RetNet(KeyValue):
    """Multi-scale retention.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether the projections in and out carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Raises:
        ValueError: If the heads do not divide evenly.

    Source: Sun et al. 2023, arXiv 2307.08621.
    """

    def __init__(
        self, config: RetNetConfig, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        keys = 2 * split_evenly("width / 2", width // 2, config.heads)
        values = config.expand * keys
        super().__init__(
            width,
            heads=config.heads,
            keys=keys,
            values=values,
            norm=RMSNorm(values, eps=config.norm_eps),
            gated=True,
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
        """See `KeyValue`."""
        wide, tokens = torch.promote_types(q_BTHN.dtype, torch.float32), q_BTHN.shape[1]
        device = q_BTHN.device
        # Turning both is turning the state between them; the state given is at position 0.
        position_BT = torch.arange(1, tokens + 1, device=device)[None]
        q_BTHN, k_BTHN = (
            self._turned(part_BTHN.to(wide), position_BT) for part_BTHN in (q_BTHN, k_BTHN)
        )
        power_H = -5 - torch.arange(self.heads, device=device, dtype=wide)
        log_decay_BTH1 = torch.log1p(-torch.exp2(power_H))[None, None, :, None]
        k_BTHN, log_decay_BTH1 = masked(k_BTHN, log_decay_BTH1, valid_B, starts_BT)
        y_BTHP, memory_BHNP = linear_attention(
            q_BTHN * self.keys**-0.5, k_BTHN, v_BTHP, log_decay_BTH1, memory_BHNP
        )
        # And back, so that the last token stands at 0.
        last_B1 = position_BT[:, -1:] if valid_B is None else valid_B[:, None]
        return y_BTHP, self._turned(memory_BHNP.mT, -last_B1).mT

    def _turned(self, x_BTHN: Tensor, position_BT: Tensor) -> Tensor:
        """Turn the pairs (x_i, x_{i+N/2}) by position · theta^(−2i/N); a T of 1 serves all."""
        half = self.keys // 2
        exponent_F = torch.arange(half, device=x_BTHN.device, dtype=torch.float64) / half
        angle_BT1F = position_BT[..., None, None] * torch.pow(self.config.theta, -exponent_F)
        cos_BT1F, sin_BT1F = angle_BT1F.cos().to(x_BTHN.dtype), angle_BT1F.sin().to(x_BTHN.dtype)
        one_BTHF, other_BTHF = x_BTHN.chunk(2, dim=-1)
        return torch.cat(
            [
                one_BTHF * cos_BT1F - other_BTHF * sin_BT1F,
                other_BTHF * cos_BT1F + one_BTHF * sin_BT1F,
            ],
            dim=-1,
        )
