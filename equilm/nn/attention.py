"""Causal self-attention with rotary embedding, as in Llama. Read `block.py` next."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from equilm.nn.heads import Heads, HeadsConfig, lengths
from equilm.nn.mixer import State
from equilm.ops.attend import attend
from equilm.ops.rotary import split_heads


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(HeadsConfig):
    """Sizes of an attention mixer, which are those of `HeadsConfig`."""

    kind: Literal["attention"] = "attention"


class AttentionState(NamedTuple):
    """Keys and values of the tokens so far; slots past `length_B` are scratch.

    So is the last, for padding, unless the state has no room: one made from nothing has the tokens
    it was made of and no slot more.
    """

    key_BSHP: Tensor
    value_BSHP: Tensor
    length_B: Tensor


class Attention(Heads):
    """[q | k | v] = W x + inject; rotate q and k; attend; project back.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether projections carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Raises:
        ValueError: If the heads do not divide evenly. That a state has room is for the caller to
            check (`check_room`); the language model does.

    Source: Llama as in `transformers`; injection as in arXiv 2502.07827 (before the rotation).
    """

    recordable = True

    def __init__(
        self,
        config: AttentionConfig,
        width: int,
        *,
        weight_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(config, width, weight_norm=weight_norm, dropout=dropout)

    def init_state(self, batch: int, capacity: int) -> AttentionState:
        """Empty buffers of `capacity` slots a row, and one more that takes what is padding."""
        like = next(self.parameters())
        # In memory a head's slots lie together: a token reads all of them, and writes one.
        buffer_BHSP = like.new_zeros(batch, self.kv_heads, capacity + 1, self.head_width)
        buffer_BSHP = buffer_BHSP.transpose(1, 2)
        length_B = torch.zeros(batch, dtype=torch.int64, device=like.device)
        return AttentionState(buffer_BSHP, buffer_BSHP.clone(), length_B)

    def forward(
        self,
        x_BTD: Tensor,
        state: AttentionState | None = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
        starts_BT: Tensor | None = None,
    ) -> tuple[Tensor, AttentionState]:
        """See `Mixer`; the next state holds the last document alone, from slot 0 on."""
        before = 0 if state is None else lengths(state.length_B)
        slot_BT = first_BT = None
        if starts_BT is not None:
            slot_BT, first_BT = _slots(starts_BT, before)
        query_BTHP, key_BSHP, value_BSHP = split_heads(
            self.qkv(x_BTD),
            inject_BTE,
            before,
            heads=self.heads,
            kv_heads=self.kv_heads,
            theta=self.config.theta,
            cache=None if state is None else (state.key_BSHP, state.value_BSHP),
            position_BT=None if slot_BT is None or first_BT is None else slot_BT - first_BT,
        )
        y_BTHP = attend(query_BTHP, key_BSHP, value_BSHP, before, first_BT)
        length_B = valid_B
        if length_B is None:
            length_B = torch.full(y_BTHP.shape[:1], y_BTHP.shape[1], device=y_BTHP.device)
        if state is not None:
            length_B = state.length_B + length_B
        y_BTD = self.dropout(self.out_proj(y_BTHP.flatten(2)))
        after = AttentionState(key_BSHP, value_BSHP, length_B)
        return y_BTD, after if first_BT is None else _last_document(after, first_BT, valid_B)

    def flops_per_token(self, length: int) -> float:
        """Projections, and on average half the context."""
        projections = self.width * self.inject_width + self.width**2
        return 2.0 * (projections + self.width * length)


def buffers(state: State) -> Iterator[AttentionState]:
    """Yield the states in a state that have room for a limited number of tokens."""
    if isinstance(state, AttentionState):
        yield state
    elif isinstance(state, tuple):
        for part in state:
            yield from buffers(part)


def room(state: AttentionState) -> int:
    """Return how many tokens the fullest row still takes; waits for the device."""
    return max(0, state.key_BSHP.shape[1] - 1 - int(state.length_B.max()))


def check_room(state: State, tokens: int) -> None:
    """Raise a ValueError unless all buffers in a state have room for so many more tokens."""
    for part in buffers(state):
        if room(part) < tokens:
            raise ValueError(
                f"state: expected room for {tokens} tokens, got {room(part)}; "
                "make it with init_state(batch, capacity)"
            )


def _slots(starts_BT: Tensor, before: Tensor | int) -> tuple[Tensor, Tensor]:
    """The slot of each token, and that of the first token of its document."""
    slot_BT = torch.arange(starts_BT.shape[1], device=starts_BT.device).expand_as(starts_BT)
    # A number stays one: a tensor made of it would have to be copied to the device.
    slot_BT = slot_BT + (before if isinstance(before, int) else before.view(-1, 1))
    return slot_BT, slot_BT.where(starts_BT, 0).cummax(dim=1).values


def _last_document(
    state: AttentionState, first_BT: Tensor, valid_B: Tensor | None
) -> AttentionState:
    """What is left once the last valid token's document has moved to slot 0."""
    if valid_B is None:
        first_B = first_BT[:, -1]
    else:
        last_B1 = (valid_B - 1).clamp(min=0)[:, None]
        first_B = first_BT.gather(1, last_B1)[:, 0].where(valid_B > 0, 0)
    slots = state.key_BSHP.shape[1]
    from_BS = first_B[:, None] + torch.arange(slots, device=first_B.device)
    from_BSHP = from_BS.clamp(max=slots - 1)[:, :, None, None].expand_as(state.key_BSHP)
    key_BSHP, value_BSHP = (buffer_BSHP.gather(1, from_BSHP) for buffer_BSHP in state[:2])
    return AttentionState(key_BSHP, value_BSHP, state.length_B - first_B)
