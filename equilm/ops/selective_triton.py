"""Launches of the selective scan's Triton kernels; `selective.py` is their meaning and their twin.

A program walks over the tokens of some channels with their states in registers. Where rows and
channels do not fill the chip, segments of the tokens are walked side by side: once from zeros for
their ends, once more from the states that these add up to. The backward pass keeps those states and
the inputs alone: it walks again for the states between chunks, and back for the cotangents between
spans; from them all spans work side by side. The kernels are in `selective_kernels.py` and
`selective_backward_kernels.py`.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from equilm.ops import selective_kernels as kernels
from equilm.ops.launch import last_dense
from equilm.ops.selective_backward_kernels import span_backward

CHUNK = 4  # tokens between two states that the backward pass starts from; its kernel says four
GROUP = 8  # tokens that a walk reads ahead, as memory answers late; some chunks
WALK_TILE = 128  # numbers of the states that a walk has in a program, which is one warp
SPAN_TILE = 256  # the same in the backward pass, which holds those of a chunk of tokens
SPAN_REGISTERS = 168  # of a thread there: three warps in place of two wait for memory


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
            last_dense(x),
            dt.float().contiguous(),
            a.float().contiguous(),
            b.float().contiguous(),
            c.float().contiguous(),
            skip.float().contiguous(),
        )
        first = None if first is None else first.float().contiguous()
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        segments, starts = _segments(inputs), None if first is None else first[:, None]
        if segments > 1:
            starts = _starts(inputs, first, segments)
        last = _walk(inputs, starts, segments=segments, y=y)[:, -1]
        ctx.save_for_backward(*inputs, starts)
        ctx.set_materialize_grads(False)
        ctx.has_first, ctx.types = first is not None, (b.dtype, c.dtype)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy, dlast):
        *tensors, starts = ctx.saved_tensors
        inputs = _Inputs(*tensors)
        x = inputs.x
        dy = torch.zeros_like(x) if dy is None else dy.contiguous()
        chunks = triton.cdiv(x.shape[1], CHUNK)
        states = torch.empty(len(x), chunks, *inputs.a.shape, dtype=x.dtype, device=x.device)
        _walk(inputs, starts, segments=1 if starts is None else starts.shape[1], states=states)
        dlast = None if dlast is None else dlast.float().contiguous()
        spans, dstates = _spans(inputs), None if dlast is None else dlast[:, None]
        if spans > 1:
            dstates = _starts(inputs._replace(x=dy, b=inputs.c), dlast, spans, reverse=True)
        dfirst = None
        if ctx.has_first:
            dfirst = torch.empty(len(x), *inputs.a.shape, device=x.device)
        dx, ddt, da, db, dc, dskip = _of_spans(inputs, dy, states, dstates, spans, dfirst)
        return dx, ddt, da, db.to(ctx.types[0]), dc.to(ctx.types[1]), dskip, dfirst


def _starts(
    inputs: _Inputs, first: Tensor | None, segments: int, *, reverse: bool = False
) -> Tensor:
    """Walk over all segments from zeros; return the state before each.

    Args:
        inputs: Of the scan; backwards, dy and c in the places of x and b.
        first: (B, I, N) where the walk begins; `None` means zeros.
        segments: S.
        reverse: Whether it walks back, with cotangents.

    Returns:
        (B, S, I, N).
    """
    rows, _, channels = inputs.x.shape
    totals = torch.empty(rows, segments, channels, device=inputs.x.device)
    ends = _walk(inputs, None, segments=segments, totals=totals, reverse=reverse)
    starts = torch.empty_like(ends)
    sizes = _tile(inputs, WALK_TILE)
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
    return starts


def _walk(
    inputs: _Inputs,
    starts: Tensor | None,
    *,
    segments: int,
    totals: Tensor | None = None,
    states: Tensor | None = None,
    y: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """Walk over segments side by side from their starts; return their ends, (B, S, I, N).

    Fills `totals` (B, S, I) with the sums of their steps, `states` (B, K, I, N) with the states
    before chunks, and `y` (B, T, I) with the outputs.
    """
    x, dt, a, b, c, skip = inputs
    rows, tokens, channels = x.shape
    sizes = _tile(inputs, WALK_TILE)
    ends = torch.empty(rows, segments, *a.shape, device=x.device)
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
        x.stride(0),
        tokens,
        _segment(tokens, segments),
        triton.cdiv(tokens, CHUNK),
        stride_xt=x.stride(1),
        num_channels=channels,
        num_n=a.shape[1],
        REVERSE=reverse,
        CHUNK=CHUNK,
        GROUP=GROUP,
        WHOLE=_whole(inputs, sizes),
        **sizes,
    )
    return ends


def _of_spans(
    inputs: _Inputs,
    dy: Tensor,
    states: Tensor,
    dstates: Tensor | None,
    spans: int,
    dfirst: Tensor | None,
) -> tuple[Tensor, ...]:
    """The gradients of x, dt, a, b, c and skip; fills `dfirst`, that of the state before all."""
    x, dt, a, b, c, skip = inputs
    rows, tokens, channels = x.shape
    size, sizes = a.shape[1], _tile(inputs, SPAN_TILE, least=16)
    blocks = triton.cdiv(channels, sizes["C"])
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    ddt = torch.empty(dt.shape, device=x.device)
    part = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
    dbc = torch.empty(blocks, rows, 2, tokens, size, dtype=part, device=x.device)
    sums = torch.empty(rows, spans, (size + 1) * channels, device=x.device)
    span_backward[(blocks, spans, rows)](
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
        dfirst,
        x.stride(0),
        tokens,
        _segment(tokens, spans),
        states.shape[1],
        stride_xt=x.stride(1),
        num_channels=channels,
        num_n=size,
        CHUNK=CHUNK,
        WHOLE=_whole(inputs, sizes),
        maxnreg=SPAN_REGISTERS,
        **sizes,
    )
    da, dskip = sums.sum((0, 1)).split([size * channels, channels])
    db, dc = dbc.sum(0, dtype=torch.float32).unbind(1)
    return dx, ddt, da.view(a.shape), db, dc, dskip


def _tile(inputs: _Inputs, numbers: int, *, least: int = 1) -> dict[str, int]:
    """The sizes of a program with so many numbers of the states; N is at least `least`."""
    state = max(least, triton.next_power_of_2(inputs.a.shape[1]))
    return {"N": state, "C": max(1, numbers // state), "num_warps": 1, "num_stages": 1}


def _whole(inputs: _Inputs, sizes: dict[str, int]) -> bool:
    """Whether groups of tokens and tiles have no rest."""
    _, tokens, channels = inputs.x.shape
    state = inputs.a.shape[1]
    return not (tokens % GROUP or channels % sizes["C"] or state % sizes["N"])


def _segments(inputs: _Inputs) -> int:
    """One where rows and channels fill the chip; else enough to make up for walking twice."""
    rows, tokens, channels = inputs.x.shape
    programs = rows * triton.cdiv(channels, _tile(inputs, WALK_TILE)["C"])
    return 1 if programs >= 1024 else _parts(tokens, 4096 // programs)


def _spans(inputs: _Inputs) -> int:
    """One where rows and channels fill the chip, which saves a walk; else enough to."""
    rows, tokens, channels = inputs.x.shape
    programs = rows * triton.cdiv(channels, _tile(inputs, SPAN_TILE)["C"])
    return 1 if programs >= 1024 else _parts(tokens, triton.cdiv(8192, programs))


def _parts(tokens: int, wanted: int) -> int:
    """How many parts of whole groups, none empty and none shorter than 64 tokens."""
    return triton.cdiv(tokens, _segment(tokens, min(wanted, triton.cdiv(tokens, 64))))


def _segment(tokens: int, segments: int) -> int:
    """The tokens of a segment: whole groups."""
    return triton.cdiv(triton.cdiv(tokens, segments), GROUP) * GROUP
