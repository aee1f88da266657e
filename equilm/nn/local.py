"""Attention over the last W tokens (a sliding window), whose state never grows.

The parameters are those of `attention.py`, which sees everything; the arithmetic is
`equilm/ops/attend_local.py`. Read `experts.py` next.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from equilm.nn.heads import Heads, HeadsConfig, lengths
from equilm.ops.attend_local import attend_local
from equilm.ops.conv import last
from equilm.ops.rotary import split_heads


@dataclass(frozen=True, kw_only=True)
class LocalConfig(HeadsConfig):
    """Sizes of a local attention mixer, beside those of `HeadsConfig`.

    Args:
        window: W, tokens that one sees, itself included; 1,024 as in Griffin.
    """

    kind: Literal["local"] = "local"
    window: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ValueError(f"window: expected an integer >= 1, got {self.window}")


class LocalState(NamedTuple):
    """Keys and values of the last W − 1 tokens, zeros before the first, and how many there were."""

    key_BWHP: Tensor
    value_BWHP: Tensor
    length_B: Tensor


class Local(Heads):
    """[q | k | v] = W x + inject; rotate q and k; attend to the last W; project back.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether projections carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Raises:
        ValueError: If the heads do not divide evenly.

    Source: Beltagy et al. 2020, arXiv 2004.05150; rotary and grouped queries as `Attention`.
    """

    def __init__(
        self, config: LocalConfig, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__(config, width, weight_norm=weight_norm, dropout=dropout)
        self.window = config.window

    def init_state(self, batch: int, capacity: int) -> LocalState:
        """Zeros; the state does not grow with `capacity`."""
        like = next(self.parameters())
        buffer_BWHP = like.new_zeros(batch, self.window - 1, self.kv_heads, self.head_width)
        length_B = torch.zeros(batch, dtype=torch.int64, device=like.device)
        return LocalState(buffer_BWHP, buffer_BWHP.clone(), length_B)

    def forward(
        self,
        x_BTD: Tensor,
        state: LocalState | None = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
        starts_BT: Tensor | None = None,
    ) -> tuple[Tensor, LocalState]:
        """See `Mixer`."""
        rows, tokens = x_BTD.shape[:2]
        is_fresh = state is None
        state = state if state is not None else self.init_state(rows, 0)
        position_BT = _positions(state.length_B, tokens, starts_BT)
        query_BTHP, key_BTHP, value_BTHP = split_heads(
            self.qkv(x_BTD),
            inject_BTE,
            0 if is_fresh else lengths(state.length_B),
            heads=self.heads,
            kv_heads=self.kv_heads,
            theta=self.config.theta,
            position_BT=None if starts_BT is None else position_BT,
        )
        # What came before is kept in the state's type, whatever this call computes in.
        key_BSHP, value_BSHP = (
            torch.cat([before_BWHP.to(new_BTHP.dtype), new_BTHP], dim=1)
            for before_BWHP, new_BTHP in zip(state[:2], (key_BTHP, value_BTHP), strict=True)
        )
        slot_T = self.window - 1 + torch.arange(tokens, device=x_BTD.device)
        # Rows that begin alike share a mask.
        first_BT = (slot_T - position_BT)[: 1 if is_fresh and starts_BT is None else rows]
        y_BTHP = attend_local(query_BTHP, key_BSHP, value_BSHP, first_BT)
        count_B = _counts(state.length_B, position_BT, valid_B)
        kept = [self._kept(part, tokens, valid_B, count_B) for part in (key_BSHP, value_BSHP)]
        key_BWHP, value_BWHP = (new.to(old.dtype) for new, old in zip(kept, state, strict=False))
        y_BTD = self.dropout(self.out_proj(y_BTHP.flatten(2)))
        return y_BTD, LocalState(key_BWHP, value_BWHP, count_B)

    def _kept(
        self, buffer_BSHP: Tensor, tokens: int, valid_B: Tensor | None, count_B: Tensor
    ) -> Tensor:
        """The last W − 1 slots, without those of another document."""
        kept_BWI = last(buffer_BSHP.flatten(2), tokens, self.window, valid_B)
        age_W = torch.arange(self.window - 1, 0, -1, device=kept_BWI.device)
        kept_BWI = kept_BWI.where((age_W <= count_B[:, None])[..., None], 0)
        return kept_BWI.unflatten(-1, (self.kv_heads, self.head_width))

    def flops_per_token(self, length: int) -> float:
        """Projections, and on average half the context as long as that is within the window."""
        projections = self.width * self.inject_width + self.width**2
        inside = min(length, self.window)
        seen = inside * (length - inside / 2) / max(length, 1)
        return 2.0 * (projections + 2 * self.width * seen)


def _positions(length_B: Tensor, tokens: int, starts_BT: Tensor | None) -> Tensor:
    """How many tokens of its document came before each one."""
    place_T = torch.arange(tokens, device=length_B.device)
    position_BT = length_B[:, None] + place_T
    if starts_BT is None:
        return position_BT
    start_BT = torch.where(starts_BT, place_T, -1).cummax(dim=1).values
    return position_BT.where(start_BT < 0, place_T - start_BT)


def _counts(length_B: Tensor, position_BT: Tensor, valid_B: Tensor | None) -> Tensor:
    """How many tokens of its document there are at the end of each row."""
    if valid_B is None:
        return position_BT[:, -1] + 1
    last_B1 = (valid_B - 1).clamp(min=0)[:, None]
    return torch.where(valid_B > 0, position_BT.gather(1, last_B1)[:, 0] + 1, length_B)
