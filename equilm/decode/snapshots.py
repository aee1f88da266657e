"""States after a prefix of tokens, kept to go on from: shared prompts, forks, roll-backs.

A recurrent state is small and a value, so keeping it is enough. Of attention's buffers the slots
in use are copied. Read `engine.py` next.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from torch import Tensor

from equilm import tree
from equilm.nn.attention import AttentionState, buffers
from equilm.nn.mixer import State


class Snapshot(NamedTuple):
    """The state of one row after some tokens, detached from everything that goes on."""

    tokens: tuple[int, ...]
    state: State


class PrefixCache:
    """Snapshots by what led to them; the least recently used leaves first.

    Args:
        limit: Snapshots kept, ≥ 0; 0 keeps none.
    """

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ValueError(f"prefix_cache: expected an integer >= 0, got {limit}")
        self.limit = limit
        self._kept: OrderedDict[tuple[Hashable, tuple[int, ...]], Snapshot] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Keep none of them."""
        self._kept.clear()

    def put(self, kind: Hashable, tokens: Sequence[int], state: State) -> None:
        """Keep the state after `tokens`; `kind` is how it was solved."""
        if not self.limit:
            return
        key = (kind, tuple(tokens))
        if key not in self._kept:
            self._kept[key] = Snapshot(key[1], frozen(state, len(tokens)))
        self._kept.move_to_end(key)
        while len(self._kept) > self.limit:
            self._kept.popitem(last=False)

    def longest(self, kind: Hashable, tokens: Sequence[int]) -> Snapshot | None:
        """Return the snapshot of the longest prefix of `tokens`, if there is any."""
        lengths = {len(prefix) for other, prefix in self._kept if other == kind}
        for length in sorted(lengths, reverse=True):
            key = (kind, tuple(tokens[:length]))
            if length <= len(tokens) and key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        return None


def frozen(state: State, length: int) -> State:
    """Copy the state of one row, of attention's buffers the first `length` slots."""
    if isinstance(state, AttentionState):
        key_BSHP, value_BSHP, length_B = state
        return AttentionState(
            key_BSHP[:, :length].clone(), value_BSHP[:, :length].clone(), length_B.clone()
        )
    if isinstance(state, Tensor):
        return state.clone()
    parts = [frozen(part, length) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def thawed(state: State, empty: State) -> State:
    """Return a frozen state with the room of `empty`, a fresh state, whose buffers it takes."""

    def fill(into: Tensor, leaf: Tensor) -> Tensor:
        if into.shape == leaf.shape:
            return leaf
        into[:, : leaf.shape[1]] = leaf
        return into

    return tree.map_(fill, empty, state)


def grows(state: State) -> bool:
    """Whether a state has room for a limited number of tokens."""
    return any(True for _ in buffers(state))
