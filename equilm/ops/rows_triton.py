"""The Triton kernel that copies rows of many buffers in one launch; the twin is in `rows.py`."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 2048  # words a program copies at once
TURNS = 8  # times that it does so


@triton.jit
def _copy_kernel(table, rows, CHUNK: tl.constexpr, TURNS: tl.constexpr):
    """One part of one row of one pair; table_L3 holds (into, from, words a row) of each."""
    entry = table + tl.program_id(0) * 3
    into = tl.load(entry).to(tl.pointer_type(tl.int32))
    source = tl.load(entry + 1).to(tl.pointer_type(tl.int32))
    words = tl.load(entry + 2)
    place = tl.program_id(1)
    row = tl.load(rows + place).to(tl.int64)
    # A row that is named again, to make up a round number, is done already.
    again = (place > 0) & (tl.load(rows + tl.maximum(place - 1, 0)) == row)
    row *= words
    words = tl.where(again, 0, words)
    first = tl.program_id(2) * CHUNK * TURNS
    for turn in range(TURNS):
        at = first + turn * CHUNK + tl.arange(0, CHUNK)
        mask = at < words
        tl.store(into + row + at, tl.load(source + row + at, mask=mask), mask=mask)


class RowCopy:
    """into[rows] = from[rows] for pairs of contiguous buffers of one type, in words of 4 bytes.

    Args:
        pairs: They stay where they are.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.pairs = pairs  # kept alive, since the kernel knows addresses only
        words = [leaf[0].numel() * leaf.itemsize // 4 for _, leaf in pairs]
        table = [
            (into.data_ptr(), leaf.data_ptr(), count)
            for (into, leaf), count in zip(pairs, words, strict=True)
        ]
        self.table_L3 = torch.tensor(table, device=pairs[0][0].device)
        self.parts = triton.cdiv(max(words), CHUNK * TURNS)

    def __call__(self, rows_N: Tensor) -> None:
        grid = (len(self.pairs), len(rows_N), self.parts)
        _copy_kernel[grid](self.table_L3, rows_N, CHUNK=CHUNK, TURNS=TURNS)
