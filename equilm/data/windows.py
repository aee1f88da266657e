"""Windows of tokens by number: which of them a step reads is computed, never stored.

    window s of a source = Perm_{seed, epoch}(s mod n),  epoch = ⌊s / n⌋

The streams of several sources take turns in exact proportion to their weights. Every window of a
source is read once in each of its epochs, and the windows of an epoch lie a little further than
those of another, so that what one leaves over at the end another reads. Read
`equilm/tasks/text.py` next.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from equilm.data.folder import Stream
from equilm.data.order import Numbers, Turns, keys_of, permute


class Windows:
    """Sequences of T + 1 tokens, each overlapping the next by one: T inputs and T targets.

    Args:
        streams: One a source.
        weights: Of the sources' turns; each > 0.
        length: T ≥ 1.
        seed: Of the order; any integer.

    Raises:
        ValueError: If a source is shorter than T + 1 tokens, or the weights do not fit.
    """

    def __init__(
        self, streams: Sequence[Stream], weights: Sequence[float], *, length: int, seed: int
    ) -> None:
        if len(streams) != len(weights):
            raise ValueError(f"weights: expected {len(streams)} numbers, got {len(weights)}")
        for stream in streams:
            if len(stream) < length + 1:
                raise ValueError(
                    f"length: expected at most {max(0, len(stream) - 1)}, as "
                    f"{stream.paths[0].parent} has {len(stream)} tokens in this split, got {length}"
                )
        self.streams, self.turns = streams, Turns(weights)
        self.length, self.seed = length, seed
        self.counts = [(len(stream) - 1) // length for stream in streams]

    def read(self, numbers: Numbers) -> NDArray[np.int64]:
        """Return the windows of these numbers, any ≥ 0, as int64 (len(numbers), T + 1)."""
        found = np.empty((len(numbers), self.length + 1), dtype=np.int64)
        source, turn = self.turns.at(np.asarray(numbers, dtype=np.uint64))
        for index, stream in enumerate(self.streams):
            (rows,) = np.nonzero(source == index)
            for row, start in zip(rows, self._starts(index, turn[rows]), strict=True):
                found[row] = stream.read(int(start), self.length + 1)
        return found

    def _starts(self, index: int, turns: Numbers) -> Numbers:
        """Where in the stream of a source its windows of these turns begin."""
        count = self.counts[index]
        spare = len(self.streams[index]) - 1 - count * self.length
        starts = np.empty_like(turns)
        epochs = turns // np.uint64(count)
        for epoch in np.unique(epochs):
            keys = keys_of("windows", self.seed, index, self.length, int(epoch))
            now = epochs == epoch
            place = permute(turns[now] % np.uint64(count), count, keys)
            starts[now] = place * np.uint64(self.length) + keys[0] % np.uint64(spare + 1)
        return starts
