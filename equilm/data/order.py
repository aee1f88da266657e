"""An order that is computed, not stored: a permutation, and turns between several sources.

    i_s = Perm_{seed, epoch}(s)

Both are functions of a position alone, so that a run resumes anywhere at no cost, and any number of
ranks agrees on the batch of a step. Read `windows.py` next.
"""

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

ROUNDS = 4  # of a Feistel network: enough to pass for random (Luby and Rackoff 1988)
MAX_CYCLE = 1_000_000  # turns, after which the shares of the sources are exact

Numbers = NDArray[np.uint64]


def keys_of(*parts: object) -> Numbers:
    """Return the ROUNDS keys that belong to what is named by `parts`, on every platform."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8 * ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def permute(numbers: Numbers, size: int, keys: Numbers) -> Numbers:
    """A bijection of 0..size−1: a Feistel network, applied again to whatever falls outside.

    Args:
        numbers: In 0..size−1.
        size: How many there are, at least 1.
        keys: One for each round.

    Returns:
        Where each number goes.

    Source: cycle walking, Black and Rogaway 2002.
    """
    half = max(1, math.ceil((size - 1).bit_length() / 2))
    numbers = _network(numbers.astype(np.uint64), half, keys)
    # The network permutes at most 4 · size numbers, so a walk is short.
    while (outside := numbers >= size).any():
        numbers[outside] = _network(numbers[outside], half, keys)
    return numbers


class Turns:
    """Whose turn it is among several sources, in exact proportion to their weights.

    Args:
        weights: Each > 0; their ratios are taken as they are written, in decimals.

    Raises:
        ValueError: For a weight that is none, or ratios that repeat after MAX_CYCLE turns only.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        if not weights or not all(0 < weight < math.inf for weight in weights):
            raise ValueError(f"weights: expected numbers > 0, got {list(weights)}")
        exact = [Fraction(str(weight)) for weight in weights]
        shared = math.lcm(*(one.denominator for one in exact))
        counts = [int(one * shared) for one in exact]
        self.counts = np.array([one // math.gcd(*counts) for one in counts], dtype=np.int64)
        if self.counts.sum() > MAX_CYCLE:
            raise ValueError(
                f"weights: expected the ratio of whole numbers of sum at most {MAX_CYCLE:,}, "
                f"got {list(weights)}"
            )
        turns = [np.arange(count) for count in self.counts]
        # The j-th of n turns of a source comes at (j + ½) / n of the cycle: evenly spread.
        places = np.concatenate([(turn + 0.5) / len(turn) for turn in turns])
        order = np.argsort(places, kind="stable")
        self._source = np.repeat(np.arange(len(turns)), self.counts)[order]
        self._turn = np.concatenate(turns)[order]

    def at(self, numbers: Numbers) -> tuple[NDArray[np.int64], Numbers]:
        """Return whose turn each of these is, and the how many-th turn of that source."""
        cycle, place = np.divmod(numbers.astype(np.int64), len(self._source))
        source = self._source[place]
        return source, (cycle * self.counts[source] + self._turn[place]).astype(np.uint64)


def _network(numbers: Numbers, half: int, keys: Numbers) -> Numbers:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = numbers >> shift, numbers & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << shift) | right


def _mixed(x: Numbers) -> Numbers:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit depends on every bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
