"""Launches of the scan's backward pass, from the states that a forward walk left before each chunk.

Used by `scan_triton.py` alone and by `gated_scan_triton.py` together with the kernels around it.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from equilm.ops import scan_backward_kernels as kernels
from equilm.ops.launch import scan_sizes, scan_splits, walk_sizes


class Scanned(NamedTuple):
    """What a scan read, and what its forward walk left."""

    x: Tensor  # (B, T, H, P)
    dt: Tensor  # (B, T, H) float32
    a: Tensor  # (H,) float32
    b: Tensor  # (B, T, G, N)
    c: Tensor  # (B, T, G, N)
    skip: Tensor  # (H,) float32
    first: Tensor | None  # (B, H, P, N) float32
    starts: Tensor | None  # (B, T) bytes
    states: Tensor  # (B, H, K, P, N)


class Gradients(NamedTuple):
    """Cotangents of a scan's inputs; those of b and c side by side, as the convolution wants."""

    dx: Tensor  # (B, T, H, P)
    ddt: Tensor  # (B, T, H)
    da: Tensor  # (H,)
    dbc: Tensor  # (B, T, 2, G, N) float32
    dskip: Tensor  # (H,)
    dfirst: Tensor | None


def scan_backward(scanned: Scanned, dy: Tensor, dlast: Tensor | None) -> Gradients:
    """Return the gradients of the scan's inputs.

    Args:
        scanned: Inputs and states.
        dy: (B, T, H, P) contiguous.
        dlast: (B, H, P, N) contiguous; `None` means zero.
    """
    dstates, dfirst = _cotangents(scanned, dy, dlast)
    dx, ddt, dvectors = _of_heads(scanned, dy, dstates)
    da, dskip = dvectors.sum(0)
    return Gradients(dx, ddt, da, _of_groups(scanned, dy, dstates), dskip, dfirst)


def _cotangents(scanned: Scanned, dy: Tensor, dlast: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Of the state behind every chunk, and of the one before the first."""
    x, dt, a, _, c, _, first, starts, states = scanned
    rows, tokens, heads, width = x.shape
    groups, state = c.shape[2:]
    dstates = torch.empty_like(states)
    dfirst = None if first is None else torch.empty(first.shape, device=x.device)
    slices, sizes = walk_sizes(scan_sizes(x, c), rows * heads)
    kernels.cotangent[(rows * heads, slices)](
        dy,
        dt,
        a,
        c,
        starts,
        dlast,
        dfirst,
        dstates,
        c.stride(0),
        c.stride(1),
        tokens,
        heads,
        heads // groups,
        width,
        state,
        HAS_FIRST=first is not None,
        HAS_LAST=dlast is not None,
        HAS_STARTS=starts is not None,
        num_warps=4,
        num_stages=2,
        **sizes,
    )
    return dstates, dfirst


def _of_heads(scanned: Scanned, dy: Tensor, dstates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dx, ddt, and the parts of da and dskip as (K, 2, H)."""
    x, dt, a, b, c, skip, _, starts, states = scanned
    rows, tokens, heads, width = x.shape
    groups, state = b.shape[2:]
    sizes = scan_sizes(x, b)
    programs = rows * triton.cdiv(tokens, sizes["L"])
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    ddt = torch.empty(dt.shape, device=x.device)
    dvectors = torch.empty(programs, 2, heads, device=x.device)
    kernels.head_backward[(programs * heads,)](
        x,
        dt,
        a,
        b,
        c,
        skip,
        dy,
        states,
        dstates,
        starts,
        dx,
        ddt,
        dvectors,
        *_strides(x, b, c),
        tokens,
        heads,
        heads // groups,
        width,
        state,
        HAS_STARTS=starts is not None,
        PART=min(64, sizes["N"]),
        num_warps=4,
        num_stages=1,
        **sizes,
    )
    return dx, ddt, dvectors


def _of_groups(scanned: Scanned, dy: Tensor, dstates: Tensor) -> Tensor:
    """The cotangents of b and c, summed over heads."""
    x, dt, a, b, c, _, _, starts, states = scanned
    rows, tokens, heads, width = x.shape
    groups, state = b.shape[2:]
    sizes = scan_sizes(x, b)
    programs = rows * triton.cdiv(tokens, sizes["L"])
    splits = scan_splits(programs, heads, groups)
    dbc = torch.empty(splits // groups, rows, tokens, 2, groups, state, device=x.device)
    kernels.group_backward[(programs, splits)](
        x,
        dt,
        a,
        b,
        c,
        dy,
        states,
        dstates,
        starts,
        dbc,
        *_strides(x, b, c),
        rows,
        tokens,
        heads,
        groups,
        heads // splits,
        width,
        state,
        HAS_STARTS=starts is not None,
        num_warps=8,
        num_stages=3 if state <= 128 and x.dtype != torch.float32 else 1,
        **sizes,
    )
    return dbc[0] if len(dbc) == 1 else dbc.sum(0)


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]
