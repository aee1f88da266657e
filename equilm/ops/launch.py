"""What the launches of Triton kernels share. Read `scan_triton.py`, `conv_triton.py`."""

from collections.abc import Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def alignment(strides: Iterable[int]) -> int:
    """Return 8 if it divides all strides, else 1.

    Strides are passed in units of it: told so, the compiler lets threads load 16 bytes at once.
    """
    return 8 if all(stride % 8 == 0 for stride in strides) else 1


def token_strides(*tensors: Tensor | None) -> tuple[int, list[int]]:
    """Return the alignment of (B, T, …) tensors, and their strides of B and T in units of it."""
    strides = [s for x in tensors for s in ((0, 0) if x is None else x.stride()[:2])]
    align = alignment(strides)
    return align, [stride // align for stride in strides]


def scan_sizes(x_BTHP: Tensor, b_BTGN: Tensor) -> dict[str, Any]:
    """Tile sizes as a plain function of shape and type; nothing is tuned at run time."""
    wide = x_BTHP.dtype == torch.float32
    return {
        "L": 64 if b_BTGN.shape[3] <= 128 and not wide else 32,
        "P": max(16, triton.next_power_of_2(x_BTHP.shape[3])),
        "N": max(16, triton.next_power_of_2(b_BTGN.shape[3])),
        "PRECISION": "ieee" if wide else "tf32",
        "WIDE": tl.float64 if wide else tl.float32,
    }


def scan_splits(programs: int, heads: int, groups: int) -> int:
    """Into how many parts to split the heads of all groups, to fill the chip."""
    splits = groups
    while programs * splits < 512 and heads % (2 * splits) == 0:
        splits *= 2
    return splits


def walk_sizes(sizes: dict[str, Any], programs: int) -> tuple[int, dict[str, Any]]:
    """Into how many slices of N to split the states of a walk, to fill the chip; and the tile."""
    slices = 1
    while programs * slices < 256 and sizes["N"] // slices > 32:
        slices *= 2
    return slices, {**sizes, "N": sizes["N"] // slices}


def as_bytes(truth: Tensor | None) -> Tensor | None:
    """Return a bool tensor's memory, dense: kernels load bytes."""
    return None if truth is None else truth.contiguous().view(torch.uint8)


def last_dense(tensor: Tensor) -> Tensor:
    """Return a tensor whose last dimension lies dense, itself if it does."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
