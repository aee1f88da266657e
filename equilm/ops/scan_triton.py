"""Triton kernels of the selective scan; `scan.py` is their meaning and their twin.

One program a (row, head) walks over the chunks with the state in registers and leaves the state
before each; then all chunks work side by side. The backward pass walks both ways and lets one
program a chunk loop over heads, to sum dB and dC in registers. Nothing but the inputs is kept in
between. The kernels are in `scan_kernels.py` and `scan_backward_kernels.py`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from equilm.ops import scan_backward_kernels as backward
from equilm.ops import scan_kernels as forward


def ssd_triton(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTGN: Tensor,
    c_BTGN: Tensor,
    skip_H: Tensor,
    state_BHPN: Tensor | None = None,
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
    y_BTHP, last_BHPN = _Scan.apply(x_BTHP, dt_BTH, a_H, b_BTGN, c_BTGN, skip_H, state_BHPN)
    return y_BTHP.reshape(rows, tokens, heads, width), last_BHPN.reshape(rows, heads, width, -1)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, dt, a, b, c, skip, first):
        x, b, c = _rows(x), _rows(b), _rows(c)
        dt, a, skip = dt.float().contiguous(), a.float(), skip.float()
        first = None if first is None else first.float().contiguous()
        ctx.save_for_backward(x, dt, a, b, c, skip, first)
        return _forward(x, dt, a, b, c, skip, first)

    @staticmethod
    def backward(ctx: Any, dy, dlast):
        x, dt, a, b, c, skip, first = ctx.saved_tensors
        gradients = _backward(x, dt, a, b, c, skip, first, dy.contiguous(), dlast.contiguous())
        return (*gradients[:6], gradients[6] if first is not None else None)


def _rows(tensor: Tensor) -> Tensor:
    """A view is enough as long as the last two dimensions lie together."""
    if tensor.stride(-1) == 1 and tensor.stride(-2) == tensor.shape[-1]:
        return tensor
    return tensor.contiguous()


def _sizes(x: Tensor, b: Tensor) -> dict[str, Any]:
    """Tile sizes as a plain function of shape and type; nothing is tuned at run time."""
    return {
        "L": 64 if b.shape[3] <= 128 and x.dtype != torch.float32 else 32,
        "P": max(16, triton.next_power_of_2(x.shape[3])),
        "N": max(16, triton.next_power_of_2(b.shape[3])),
        "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",
        "WIDE": tl.float64 if x.dtype == torch.float32 else tl.float32,
    }


def _walk(x, dt, a, b, first, sizes):
    """Return the states before every chunk and the one after the last."""
    rows, tokens, heads, width = x.shape
    groups, state = b.shape[2:]
    chunks = triton.cdiv(tokens, sizes["L"])
    states = torch.empty(rows, heads, chunks, width, state, dtype=x.dtype, device=x.device)
    last = torch.empty(rows, heads, width, state, device=x.device)
    forward.walk[(rows * heads,)](
        x,
        dt,
        a,
        b,
        first,
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
        num_warps=4,
        num_stages=2,
        **sizes,
    )
    return states, last


def _splits(programs: int, heads: int, groups: int) -> int:
    """Into how many parts to split the heads of all groups, to fill the chip."""
    splits = groups
    while programs * splits < 512 and heads % (2 * splits) == 0:
        splits *= 2
    return splits


def _forward(x, dt, a, b, c, skip, first):
    rows, tokens, heads, width = x.shape
    groups, state = b.shape[2:]
    sizes = _sizes(x, b)
    states, last = _walk(x, dt, a, b, first, sizes)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    programs = rows * triton.cdiv(tokens, sizes["L"])
    splits = _splits(programs, heads, groups)
    forward.output[(programs, splits)](
        x,
        dt,
        a,
        b,
        c,
        skip,
        states,
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
        num_warps=4,
        num_stages=3 if state <= 128 and x.dtype != torch.float32 else 1,
        **sizes,
    )
    return y, last


def _backward(x, dt, a, b, c, skip, first, dy, dlast):
    rows, tokens, heads, width = x.shape
    groups, state = b.shape[2:]
    sizes = _sizes(x, b)
    states, _ = _walk(x, dt, a, b, first, sizes)
    dstates = torch.empty_like(states)
    dfirst = torch.empty(rows, heads, width, state, device=x.device)
    backward.cotangent[(rows * heads,)](
        dy,
        dt,
        a,
        c,
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
        HAS_LAST=True,
        num_warps=4,
        num_stages=2,
        **sizes,
    )
    programs = rows * triton.cdiv(tokens, sizes["L"])
    strides = (x.stride(0), x.stride(1), b.stride(0), b.stride(1), c.stride(0), c.stride(1))
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    ddt = torch.empty(dt.shape, device=x.device)
    da = torch.empty(programs, heads, device=x.device)
    dskip = torch.empty_like(da)
    backward.head_backward[(programs * heads,)](
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
        da,
        dskip,
        *strides,
        tokens,
        heads,
        heads // groups,
        width,
        state,
        num_warps=4,
        num_stages=1,
        **sizes,
    )
    splits = _splits(programs, heads, groups)
    db = torch.empty(splits, rows, tokens, state, device=x.device)
    dc = torch.empty_like(db)
    backward.group_backward[(programs, splits)](
        x,
        dt,
        a,
        b,
        c,
        dy,
        states,
        dstates,
        db,
        dc,
        *strides,
        rows,
        tokens,
        heads,
        groups,
        heads // splits,
        width,
        state,
        num_warps=8,
        num_stages=3 if state <= 128 and x.dtype != torch.float32 else 1,
        **sizes,
    )
    db, dc = (
        part.view(groups, splits // groups, rows, tokens, state).sum(1).permute(1, 2, 0, 3)
        for part in (db, dc)
    )
    return dx, ddt, da.sum(0), db.to(b.dtype), dc.to(c.dtype), dskip.sum(0), dfirst
