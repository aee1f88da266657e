"""Launches of the selective scan's Triton kernels; `selective.py` is their meaning and their twin.

A program walks over the tokens of some channels with their states in registers. Where rows and
channels do not fill the chip, segments of the tokens are walked side by side: once from zeros for
their ends, once more from the states that these add up to. The backward pass keeps those states and
the inputs alone: it walks again, both ways, and leaves a state and a cotangent between chunks; from
them all chunks work side by side. The kernels are in `selective_kernels.py`.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from equilm.ops import selective_kernels as kernels

CHUNK = 8  # tokens between two states that the backward pass starts from
GROUP = 4  # tokens that a walk reads ahead; divides CHUNK
CHANNELS = 64  # of a program of the backward pass: one warp, two channels a thread


class _Inputs(NamedTuple):
    """The arguments of a scan; all but x are contiguous and in float32."""

    x: Tensor  # (B, T, I), its last dimension dense
    dt: Tensor  # (B, T, I)
    a: Tensor  # (I, N)
    b: Tensor  # (B, T, N)
    c: Tensor  # (B, T, N)
    skip: Tensor  # (I,)


class SelectiveScan(torch.autograd.Function):
    """`selective_scan` on a GPU, with its arguments in order; y comes in the type of x."""

    @staticmethod
    def forward(ctx: Any, x, dt, a, b, c, skip, first):
        inputs = _Inputs(
            _last_dense(x),
            dt.float().contiguous(),
            a.float().contiguous(),
            b.float().contiguous(),
            c.float().contiguous(),
            skip.float().contiguous(),
        )
        first = None if first is None else first.float().contiguous()
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        starts, ends = _walked(inputs, first, y=y)
        ctx.save_for_backward(*inputs, starts)
        ctx.set_materialize_grads(False)
        ctx.has_first, ctx.types = first is not None, (b.dtype, c.dtype)
        return y, ends[:, -1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy, dlast):
        *tensors, starts = ctx.saved_tensors
        inputs = _Inputs(*tensors)
        x = inputs.x
        dy = torch.zeros_like(x) if dy is None else dy.contiguous()
        states = _between(inputs)
        _walk(inputs, starts, states=states, segments=1 if starts is None else starts.shape[1])
        back = inputs._replace(x=dy, b=inputs.c)
        dstates = _between(inputs)
        dlast = None if dlast is None else dlast.float().contiguous()
        _, ends = _walked(back, dlast, states=dstates, reverse=True)
        dfirst = ends[:, 0] if ctx.has_first else None
        dx, ddt, da, db, dc, dskip = _of_chunks(inputs, dy, states, dstates)
        return dx, ddt, da, db.to(ctx.types[0]), dc.to(ctx.types[1]), dskip, dfirst


def _walked(
    inputs: _Inputs,
    first: Tensor | None,
    *,
    y: Tensor | None = None,
    states: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor | None, Tensor]:
    """Walk over all tokens; return the states before and behind every segment.

    Args:
        inputs: Of the scan; backwards, dy and c in the places of x and b.
        first: (B, I, N) where the walk begins; `None` means zeros.
        y: (B, T, I) takes the outputs.
        states: (B, K, N, I) takes the state where the walk enters each chunk.
        reverse: Whether it walks back, with cotangents.
    """
    rows, tokens, channels = inputs.x.shape
    segments = _segments(rows, tokens, channels)
    starts = None if first is None else first[:, None]
    if segments > 1:
        ends, totals = _walk(inputs, None, segments=segments, reverse=reverse)
        starts = torch.empty_like(ends)
        sizes = _sizes(inputs)
        kernels.carry[(triton.cdiv(channels, sizes["C"]), rows)](
            ends,
            totals,
            inputs.a,
            first,
            starts,
            segments,
            channels,
            num_n=inputs.a.shape[1],
            REVERSE=reverse,
            **sizes,
        )
    ends, _ = _walk(inputs, starts, y=y, states=states, segments=segments, reverse=reverse)
    return starts, ends


def _walk(
    inputs: _Inputs,
    starts: Tensor | None,
    *,
    segments: int,
    y: Tensor | None = None,
    states: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Walk over segments side by side; return their ends, and the sums of their steps."""
    x, dt, a, b, c, skip = inputs
    rows, tokens, channels = x.shape
    sizes = _sizes(inputs)
    ends = torch.empty(rows, segments, *a.shape, device=x.device)
    totals = torch.empty(rows, segments, channels, device=x.device)
    kernels.walk[(triton.cdiv(channels, sizes["C"]), segments, rows)](
        x,
        dt,
        a,
        b,
        c,
        skip,
        starts,
        ends,
        totals,
        states,
        y,
        *x.stride()[:2],
        tokens,
        channels,
        _segment(tokens, segments),
        triton.cdiv(tokens, CHUNK),
        num_n=a.shape[1],
        REVERSE=reverse,
        CHUNK=CHUNK,
        GROUP=GROUP,
        **sizes,
    )
    return ends, totals


def _of_chunks(inputs: _Inputs, dy: Tensor, states: Tensor, dstates: Tensor) -> tuple[Tensor, ...]:
    """The gradients of x, dt, a, b, c and skip."""
    x, dt, a, b, c, skip = inputs
    rows, tokens, channels = x.shape
    size, chunks, width = a.shape[1], states.shape[1], CHANNELS
    blocks = triton.cdiv(channels, width)
    per_program = _chunks_per_program(rows * blocks, chunks)
    programs = triton.cdiv(chunks, per_program)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    ddt = torch.empty(dt.shape, device=x.device)
    dbc = torch.empty(blocks, rows, 2, size, tokens, device=x.device)
    sums = torch.empty(rows, programs, size + 1, channels, device=x.device)
    kernels.chunk_backward[(blocks, programs, rows)](
        x,
        dt,
        a,
        b,
        c,
        skip,
        dy,
        states,
        dstates,
        dx,
        ddt,
        dbc,
        sums,
        *x.stride()[:2],
        tokens,
        channels,
        size,
        chunks,
        per_program,
        CHUNK=CHUNK,
        C=width,
        num_warps=1,
        num_stages=1,
    )
    da, dskip = sums.sum((0, 1)).split([size, 1])
    db, dc = dbc.sum(0).transpose(2, 3).unbind(1)
    return dx, ddt, da.t(), db, dc, dskip[0]


def _between(inputs: _Inputs) -> Tensor:
    """Room for a state a chunk, in the type of x."""
    x, size = inputs.x, inputs.a.shape[1]
    chunks = triton.cdiv(x.shape[1], CHUNK)
    return torch.empty(len(x), chunks, size, x.shape[2], dtype=x.dtype, device=x.device)


def _sizes(inputs: _Inputs) -> dict[str, int]:
    """A channel a thread; with fewer threads than N, b and c would go through shared memory."""
    state = triton.next_power_of_2(inputs.a.shape[1])
    warps = max(1, state // 16)
    return {"N": state, "C": 32 * warps, "num_warps": warps, "num_stages": 1}


def _segments(rows: int, tokens: int, channels: int) -> int:
    """One where rows and channels fill the chip; else enough to make up for walking twice."""
    warps = rows * triton.cdiv(channels, 32)
    if warps >= 512:
        return 1
    wanted = min(triton.cdiv(2048, warps), triton.cdiv(tokens, 64))
    return triton.cdiv(tokens, _segment(tokens, wanted))


def _chunks_per_program(programs: int, chunks: int) -> int:
    """As many as leave the chip full; each program leaves sums of its own."""
    per_program = 16
    while per_program > 1 and programs * triton.cdiv(chunks, per_program) < 4096:
        per_program //= 2
    return per_program


def _segment(tokens: int, segments: int) -> int:
    """The tokens of a segment: whole chunks."""
    return triton.cdiv(triton.cdiv(tokens, segments), CHUNK) * CHUNK


def _last_dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
