"""Examples of a folder: the bytes of a file, plain or packed, and a shuffled order without end.

Next: `pixels.py`.
"""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equilm.data.order import keys_of, permute


def unpacked(folder: Path, name: str) -> bytes:
    """Read `name`, or `name.xz`, of a folder.

    Raises:
        ValueError: neither is there.
    """
    plain, packed = folder / name, folder / f"{name}.xz"
    if plain.exists():
        return plain.read_bytes()
    if packed.exists():
        return lzma.decompress(packed.read_bytes())
    raise ValueError(f"folder: expected {name} or {name}.xz in {folder}, got neither")


def shuffled(
    size: int, *, index: int, batch_size: int, seed: int, split: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Examples of rows `index · B` to `index · B + B − 1` of a stream, each once in every pass.

    Args:
        size: examples of the split, at least 1.
        index: of the batch.
        batch_size: B.
        seed: of the order.
        split: a name, so that no two splits share an order.

    Returns:
        The number of the example in 0..size−1, and of the pass, both int64 (B).
    """
    numbers = np.arange(index * batch_size, (index + 1) * batch_size)
    epochs, places = np.divmod(numbers, size)
    chosen = np.empty_like(numbers)
    for epoch in np.unique(epochs):
        keys = keys_of("examples", split, seed, int(epoch))
        now = epochs == epoch
        chosen[now] = permute(places[now].astype(np.uint64), size, keys).astype(np.int64)
    return chosen, epochs
