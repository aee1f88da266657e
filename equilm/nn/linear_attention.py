"""Linear attention: the softmax of attention replaced by a product of positive features.

    [q | k | v] = W_in x + inject,   φ(x) = elu(x) + 1
    S_t = S_{t−1} + φ(k_t) v_tᵀ,  z_t = z_{t−1} + φ(k_t),  y_t = S_tᵀ φ(q_t) / (z_t · φ(q_t))

z is one more column of S, whose values are 1. The state has H · N · (P + 1) numbers with N = P =
D / H. Nothing is forgotten. Read `retnet.py` next.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilm.nn.key_value import KeyValue, split_evenly
from equilm.ops.linear_attention import linear_attention, masked


@dataclass(frozen=True, kw_only=True)
class LinearAttentionConfig:
    """Sizes of a linear attention mixer; the default is the published one.

    Args:
        heads: H, of width D / H.
        eps: Added to the normaliser, > 0.
    """

    kind: Literal["linear_attention"] = "linear_attention"
    heads: int = 8
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise ValueError(f"eps: expected a number > 0, got {self.eps}")


class LinearAttention(KeyValue):
    """The linear Transformer's mixer.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether the projections in and out carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Raises:
        ValueError: If the heads do not divide evenly.

    Source: Katharopoulos et al. 2020, arXiv 2006.16236.
    """

    def __init__(
        self,
        config: LinearAttentionConfig,
        width: int,
        *,
        weight_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        size = split_evenly("width", width, config.heads)
        super().__init__(
            width,
            heads=config.heads,
            keys=size,
            values=size,
            norm=nn.Identity(),
            gated=False,
            weight_norm=weight_norm,
            dropout=dropout,
        )
        self.config, self.columns = config, size + 1

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
        q_BTHN, k_BTHN = (F.elu(part_BTHN.to(wide)) + 1 for part_BTHN in (q_BTHN, k_BTHN))
        kept_BTH1 = q_BTHN.new_zeros(1, 1, 1, 1)
        k_BTHN, kept_BTH1 = masked(k_BTHN, kept_BTH1, valid_B, starts_BT)
        v_BTHP = F.pad(v_BTHP.to(wide), (0, 1), value=1.0)
        y_BTHP, memory_BHNP = linear_attention(q_BTHN, k_BTHN, v_BTHP, kept_BTH1, memory_BHNP)
        return y_BTHP[..., :-1] / (y_BTHP[..., -1:] + self.config.eps), memory_BHNP
