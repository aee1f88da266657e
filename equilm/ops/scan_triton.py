"""Triton kernels of the selective scan; `scan.py` is their meaning and their twin.

One program a (row, head), or a slice of its state where these are few, walks over the chunks with
the state in registers and leaves the state before each; then all chunks work side by side. The
backward pass walks both ways and lets one program a chunk loop over heads, to sum dB and dC in
registers. Nothing but the inputs is kept in between. The kernels are in `scan_kernels.py` and
`scan_backward_kernels.py`, the launches of the backward pass in `scan_backward_triton.py`.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from equilm.ops import scan_kernels as forward
from equilm.ops.launch import as_bytes, scan_sizes, scan_splits, walk_sizes
from equilm.ops.scan_backward_triton import Scanned, scan_backward


def ssd_triton(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTGN: Tensor,
    c_BTGN: Tensor,
    skip_H: Tensor,
    state_BHPN: Tensor | None = None,
    starts_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`equilm.ops.scan.ssd` on a GPU: the same arguments; y comes in the type of x."""
    rows, tokens, heads, width = x_BTHP.shape
    parts = next(n for n in range(1, width + 1) if width % n == 0 and width // n <= 64)
    if parts > 1:
        # Slices of a wide head are heads that share their decay.
        x_BTHP = x_BTHP.reshape(rows, tokens, heads * parts, width // parts)
        dt_BTH = dt_BTH.repeat_interleave(parts, dim=2)
        a_H, skip_H = a_H.repeat_interleave(parts), skip_H.repeat_interleave(parts)
        if state_BHPN is not None:
            state_BHPN = state_BHPN.reshape(rows, heads * parts, width // parts, -1)
    y_BTHP, last_BHPN = _Scan.apply(
        x_BTHP, dt_BTH, a_H, b_BTGN, c_BTGN, skip_H, state_BHPN, as_bytes(starts_BT)
    )
    return y_BTHP.reshape(rows, tokens, heads, width), last_BHPN.reshape(rows, heads, width, -1)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, dt, a, b, c, skip, first, starts):
        x, b, c = _rows(x), _rows(b), _rows(c)
        dt, a, skip = dt.float().contiguous(), a.float(), skip.float()
        first = None if first is None else first.float().contiguous()
        ctx.save_for_backward(x, dt, a, b, c, skip, first, starts)
        return scan_forward(x, dt, a, b, c, skip, first, starts)

    @staticmethod
    def backward(ctx: Any, dy, dlast):
        x, dt, a, b, c, skip, first, starts = ctx.saved_tensors
        states, _ = walk(x, dt, a, b, first, starts)
        scanned = Scanned(x, dt, a, b, c, skip, first, starts, states)
        dx, ddt, da, dbc, dskip, dfirst = scan_backward(
            scanned, dy.contiguous(), dlast.contiguous()
        )
        db, dc = dbc.unbind(2)
        return dx, ddt, da, db.to(b.dtype), dc.to(c.dtype), dskip, dfirst, None


def _rows(tensor: Tensor) -> Tensor:
    """A view is enough as long as the last two dimensions lie together."""
    if tensor.stride(-1) == 1 and tensor.stride(-2) == tensor.shape[-1]:
        return tensor
    return tensor.contiguous()


def walk(x, dt, a, b, first, starts):
    """Return the states before every chunk and the one after the last."""
    sizes = scan_sizes(x, b)
    rows, tokens, heads, width = x.shape
    groups, state = b.shape[2:]
    chunks = triton.cdiv(tokens, sizes["L"])
    states = torch.empty(rows, heads, chunks, width, state, dtype=x.dtype, device=x.device)
    last = torch.empty(rows, heads, width, state, device=x.device)
    slices, sizes = walk_sizes(sizes, rows * heads)
    forward.walk[(rows * heads, slices)](
        x,
        dt,
        a,
        b,
        first,
        starts,
        last,
        states,
        x.stride(0),
        x.stride(1),
        b.stride(0),
        b.stride(1),
        tokens,
        heads,
        heads // groups,
        width,
        state,
        HAS_FIRST=first is not None,
        HAS_STARTS=starts is not None,
        num_warps=4,
        num_stages=2,
        # As many as without starts, so that three programs fit where they did.
        maxnreg=168 if starts is not None and sizes["N"] <= 128 else None,
        **sizes,
    )
    return states, last


def scan_forward(x, dt, a, b, c, skip, first, starts):
    """Return the outputs in the type of x, and the state after the last token."""
    states, last = walk(x, dt, a, b, first, starts)
    return output(x, dt, a, b, c, skip, starts, states), last


def output(x, dt, a, b, c, skip, starts, states):
    """Return the outputs, from the states before every chunk."""
    rows, tokens, heads, width = x.shape
    groups, state = b.shape[2:]
    sizes = scan_sizes(x, b)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    programs = rows * triton.cdiv(tokens, sizes["L"])
    splits = scan_splits(programs, heads, groups)
    forward.output[(programs, splits)](
        x,
        dt,
        a,
        b,
        c,
        skip,
        states,
        starts,
        y,
        x.stride(0),
        x.stride(1),
        b.stride(0),
        b.stride(1),
        c.stride(0),
        c.stride(1),
        tokens,
        heads,
        groups,
        heads // splits,
        width,
        state,
        HAS_STARTS=starts is not None,
        num_warps=4,
        num_stages=3 if state <= 128 and x.dtype != torch.float32 else 1,
        **sizes,
    )
    return y
