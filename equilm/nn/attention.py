"""Causal self-attention with rotary embedding, as in Llama. Read `block.py` next."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from equilm.nn.linear import Linear, VariationalDropout
from equilm.nn.mixer import Mixer
from equilm.ops.attend import attend, rotary


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Sizes of an attention mixer; the defaults are the published ones.

    Args:
        heads: H.
        kv_heads: Heads of keys and values, a divisor of H; `None` means H.
        theta: Base of the rotary frequencies.
    """

    kind: Literal["attention"] = "attention"
    heads: int = 12
    kv_heads: int | None = None
    theta: float = 500_000.0

    def __post_init__(self) -> None:
        for name in ("heads", "kv_heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {value}")
        if not self.theta > 0:
            raise ValueError(f"theta: expected a number > 0, got {self.theta}")


class AttentionState(NamedTuple):
    """Keys and values of the tokens so far; slots past `length_B`, and the last, are scratch."""

    key_BSHP: Tensor
    value_BSHP: Tensor
    length_B: Tensor


class Attention(Mixer):
    """[q | k | v] = W x + inject; rotate q and k; attend; project back.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether projections carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Raises:
        ValueError: If the heads do not divide evenly. That a state has room is for the caller to
            check (`room`); the language model does.

    Source: Llama as in `transformers`; injection as in arXiv 2502.07827 (before the rotation).
    """

    def __init__(
        self,
        config: AttentionConfig,
        width: int,
        *,
        weight_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.heads, self.kv_heads = config.heads, config.kv_heads or config.heads
        if width % (2 * self.heads):
            raise ValueError(
                f"mixer.heads: expected a divisor of width / 2 = {width / 2:g}, got {self.heads}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"mixer.kv_heads: expected a divisor of {self.heads} heads, got {self.kv_heads}"
            )
        self.head_width = width // self.heads
        kv_width = self.kv_heads * self.head_width
        self.sizes = [width, kv_width, kv_width]
        self.inject_width = sum(self.sizes)
        self.wq = Linear(width, width, weight_norm=weight_norm)
        self.wk = Linear(width, kv_width, weight_norm=weight_norm)
        self.wv = Linear(width, kv_width, weight_norm=weight_norm)
        self.out_proj = Linear(width, width, weight_norm=weight_norm)
        self.dropout = VariationalDropout(dropout)

    def init_state(self, batch: int, capacity: int) -> AttentionState:
        """Empty buffers of `capacity` slots a row, and one more that takes what is padding."""
        like = next(self.parameters())
        buffer_BSHP = like.new_zeros(batch, capacity + 1, self.kv_heads, self.head_width)
        length_B = torch.zeros(batch, dtype=torch.int64, device=like.device)
        return AttentionState(buffer_BSHP, buffer_BSHP.clone(), length_B)

    def forward(
        self,
        x_BTD: Tensor,
        state: AttentionState | None = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
    ) -> tuple[Tensor, AttentionState]:
        """See `Mixer`."""
        rows, tokens, _ = x_BTD.shape
        query_BTI, key_BTI, value_BTI = self.wq(x_BTD), self.wk(x_BTD), self.wv(x_BTD)
        if inject_BTE is not None:
            query_in, key_in, value_in = inject_BTE.to(query_BTI.dtype).split(self.sizes, dim=-1)
            query_BTI = query_BTI + query_in
            key_BTI, value_BTI = key_BTI + key_in, value_BTI + value_in
        offset_BT = torch.arange(tokens, device=x_BTD.device)[None]
        position_BT = offset_BT if state is None else state.length_B[:, None] + offset_BT
        query_BTHP = self._rotated(query_BTI, position_BT)
        key_BTHP = self._rotated(key_BTI, position_BT)
        value_BTHP = value_BTI.unflatten(-1, (-1, self.head_width))
        added_B = torch.full_like(position_BT[:, 0], tokens) if valid_B is None else valid_B
        if state is None:
            y_BTHP = attend(query_BTHP, key_BTHP, value_BTHP)
            state = AttentionState(_closed(key_BTHP), _closed(value_BTHP), added_B.expand(rows))
        else:
            key_BSHP = _write(state.key_BSHP, key_BTHP, position_BT)
            value_BSHP = _write(state.value_BSHP, value_BTHP, position_BT)
            y_BTHP = attend(
                query_BTHP,
                key_BSHP.to(query_BTHP.dtype),
                value_BSHP.to(query_BTHP.dtype),
                position_BT,
            )
            state = AttentionState(key_BSHP, value_BSHP, state.length_B + added_B)
        return self.dropout(self.out_proj(y_BTHP.flatten(2))), state

    def flops_per_token(self, length: int) -> float:
        """Projections, and on average half the context."""
        projections = self.width * self.inject_width + self.width**2
        return 2.0 * (projections + self.width * length)

    def _rotated(self, x_BTI: Tensor, position_BT: Tensor) -> Tensor:
        x_BTHP = x_BTI.unflatten(-1, (-1, self.head_width))
        return rotary(x_BTHP, position_BT, theta=self.config.theta)


def room(state: AttentionState) -> int:
    """Return how many tokens the fullest row still takes; waits for the device."""
    return state.key_BSHP.shape[1] - 1 - int(state.length_B.max())


def _closed(new_BTHP: Tensor) -> Tensor:
    """Buffers that are full: the tokens and the slot for padding."""
    return torch.cat([new_BTHP, torch.zeros_like(new_BTHP[:, :1])], dim=1)


def _write(buffer_BSHP: Tensor, new_BTHP: Tensor, position_BT: Tensor) -> Tensor:
    """Put the new tokens into their slots; in place, unless autograd needs the buffer as it is."""
    new_BTHP = new_BTHP.to(buffer_BSHP.dtype)
    rows_B1 = torch.arange(buffer_BSHP.shape[0], device=buffer_BSHP.device)[:, None]
    # Padding, and the overhang of a window, may lie past the end: the last slot takes it.
    index = (rows_B1, position_BT.clamp(max=buffer_BSHP.shape[1] - 1))
    if torch.is_grad_enabled() or buffer_BSHP.requires_grad:
        return buffer_BSHP.index_put(index, new_BTHP)
    return buffer_BSHP.index_put_(index, new_BTHP)
