"""The state of a model as the cache of `transformers`' `generate`. Read `modeling.py` next."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from equilm import tree
from equilm.nn.attention import AttentionState
from equilm.nn.mixer import State

GROWTH = 256  # slots added to an attention buffer that is full; a copy every so many tokens


class EquilmCache(Cache):
    """Holds the state after the tokens seen, in place of the one before them.

    Copy it (`copy.deepcopy`) before branching; states of attention share their buffers.
    """

    def __init__(self) -> None:
        super().__init__(layers=[StateLayer()])

    @property
    def layer(self) -> "StateLayer":
        """The one layer, which holds the state of the whole model."""
        layer: StateLayer = self.layers[0]
        return layer


class StateLayer(CacheLayerMixin):
    """The state of the whole model, and how many tokens (padding included) led to it."""

    def __init__(self) -> None:
        super().__init__()
        self.state: State = None
        self.seen = 0

    def before(self, tokens: int) -> State:
        """Return the state, with room for that many tokens; `None` before the first."""
        return with_room(self.state, self.seen + tokens)

    def keep(self, state: State, tokens: int) -> None:
        """Put the state after that many more tokens in place."""
        self.state, self.seen = state, self.seen + tokens
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Tokens seen, padding included."""
        return self.seen

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns and offset of a mask."""
        return self.seen + query_length, 0

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.seen, self.is_initialized = None, 0, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row i be what row `beam_idx[i]` was."""
        self.state = tree.map_(lambda leaf: leaf[beam_idx.to(leaf.device)], self.state)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self.state = tree.map_(lambda leaf: leaf.repeat_interleave(repeats, dim=0), self.state)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Not how this cache is filled."""
        raise NotImplementedError("EquilmCache holds states of equilm's models, no keys and values")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any) -> Any:
        """Not how this cache is filled."""
        raise NotImplementedError("EquilmCache holds states of equilm's models, no keys and values")


def with_room(state: State, tokens: int) -> State:
    """Return `state` with attention buffers for `tokens` tokens a row in all, if it has any."""
    if isinstance(state, AttentionState):
        # The last slot is scratch: it takes what is padding.
        missing = tokens + 1 - state.key_BSHP.shape[1]
        if missing <= 0:
            return state
        slots = (0, 0, 0, 0, 0, missing + GROWTH)
        return state._replace(
            key_BSHP=F.pad(state.key_BSHP, slots), value_BSHP=F.pad(state.value_BSHP, slots)
        )
    if isinstance(state, tuple) and not hasattr(state, "_fields"):
        return tuple(with_room(part, tokens) for part in state)
    return state
