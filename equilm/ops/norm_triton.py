"""Triton kernels of the RMS norms; `norm.py` is their meaning and their twin.

One program a row. The norm of the residual stream adds the last block's output on the way; the
gated norm adds the injection to its gate. The backward passes are in `norm_backward_triton.py`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from equilm.ops.launch import token_strides
from equilm.ops.norm_backward_triton import add_norm_backward, gated_norm_backward


@triton.jit
def _scaled(value, scale, HAS_SCALE: tl.constexpr):
    """What goes out in e4m3 is divided by its scale; a norm's output cannot exceed it."""
    if HAS_SCALE:
        value *= 1.0 / tl.load(scale)
    return value


@triton.jit
def _add_norm_kernel(
    r,
    y,
    weight,
    scale,
    total,
    normed,
    num_columns,
    eps,
    HAS_ADD: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    D: tl.constexpr,
):
    """total = r + y; normed = RMSNorm(total) · weight."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, D)
    mask = d < num_columns
    value = tl.load(r + row * num_columns + d, mask=mask, other=0.0).to(tl.float32)
    if HAS_ADD:
        value += tl.load(y + row * num_columns + d, mask=mask, other=0.0).to(tl.float32)
        tl.store(total + row * num_columns + d, value.to(total.dtype.element_ty), mask=mask)
    value *= tl.rsqrt(tl.sum(value * value, 0) / num_columns + eps)
    value *= tl.load(weight + d, mask=mask, other=0.0).to(tl.float32)
    value = _scaled(value, scale, HAS_SCALE)
    tl.store(normed + row * num_columns + d, value.to(normed.dtype.element_ty), mask=mask)


@triton.jit
def _gated_norm_kernel(
    y,
    gate,
    add,
    weight,
    scale,
    out,
    num_tokens,
    num_columns,
    stride_gb,
    stride_gt,
    stride_ab,
    stride_at,
    eps,
    HAS_ADD: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    D: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """RMSNorm(y · SiLU(gate + add)) · weight of one group of one row."""
    # Divided in 32 bits: in 64 it would cost as much as the rest.
    row, group = tl.program_id(0), tl.program_id(1)
    b, t = (row // num_tokens).to(tl.int64), row % num_tokens
    d = tl.arange(0, D)
    mask = d < num_columns
    d += group * num_columns
    at = b * (stride_gb * ALIGN) + t * (stride_gt * ALIGN) + d
    gate_D = tl.load(gate + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_ADD:
        at = b * (stride_ab * ALIGN) + t * (stride_at * ALIGN) + d
        gate_D += tl.load(add + at, mask=mask, other=0.0).to(tl.float32)
    at = row.to(tl.int64) * num_columns * tl.num_programs(1) + d
    value = tl.load(y + at, mask=mask, other=0.0).to(tl.float32) * gate_D * tl.sigmoid(gate_D)
    value *= tl.rsqrt(tl.sum(value * value, 0) / num_columns + eps)
    value *= tl.load(weight + d, mask=mask, other=0.0).to(tl.float32)
    value = _scaled(value, scale, HAS_SCALE)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _group_norm_kernel(
    x, weight, scale, out, num_columns, eps, HAS_SCALE: tl.constexpr, D: tl.constexpr
):
    """RMSNorm(x) · weight of one group of one row."""
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = tl.arange(0, D)
    mask = d < num_columns
    d += group * num_columns
    at = row * num_columns * tl.num_programs(1) + d
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, 0) / num_columns + eps)
    value *= tl.load(weight + d, mask=mask, other=0.0).to(tl.float32)
    value = _scaled(value, scale, HAS_SCALE)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


class AddNorm(torch.autograd.Function):
    """(r + y in float32, its norm in the type asked for); y may be missing."""

    @staticmethod
    def forward(ctx: Any, r, y, weight, eps, dtype, scale):
        r = r.contiguous()
        y = None if y is None else y.contiguous()
        columns = r.shape[-1]
        rows = r.numel() // columns
        # Between layers that round to 8 bits the stream needs no more than 16.
        wide = torch.float32 if scale is None else dtype
        total = r if y is None else torch.empty(r.shape, dtype=wide, device=r.device)
        dtype = dtype if scale is None else torch.float8_e4m3fn
        normed = torch.empty(r.shape, dtype=dtype, device=r.device)
        _add_norm_kernel[(rows,)](
            r,
            r if y is None else y,
            weight,
            weight if scale is None else scale,
            total,
            normed,
            columns,
            eps,
            HAS_ADD=y is not None,
            HAS_SCALE=scale is not None,
            D=triton.next_power_of_2(columns),
            num_warps=_warps(columns),
        )
        ctx.save_for_backward(total, weight)
        ctx.set_materialize_grads(False)
        ctx.eps, ctx.y_dtype = eps, None if y is None else y.dtype
        return total, normed

    @staticmethod
    def backward(ctx: Any, dtotal, dnormed):
        total, weight = ctx.saved_tensors
        dtotal = None if dtotal is None else dtotal.contiguous()
        if dnormed is None:
            dnormed = torch.zeros_like(total)
        dr, dy, dweight = add_norm_backward(
            total, weight, dtotal, dnormed.contiguous(), ctx.y_dtype, ctx.eps
        )
        return dr, dy, dweight, None, None, None


class GatedNorm(torch.autograd.Function):
    """RMSNorm(y · SiLU(gate + add)) · weight by groups, in the type asked for."""

    @staticmethod
    def forward(ctx: Any, y, gate, add, weight, groups, eps, dtype, scale):
        shape = y.shape
        y, gate = _rows(y).contiguous(), _rows(gate)
        add = None if add is None else _rows(add)
        ctx.save_for_backward(y, gate, add, weight)
        ctx.groups, ctx.eps = groups, eps
        out = gated_norm(y, gate, add, weight, groups=groups, eps=eps, dtype=dtype, scale=scale)
        return out.view(shape)

    @staticmethod
    def backward(ctx: Any, dout):
        y, gate, add, weight = ctx.saved_tensors
        dy = torch.empty(y.shape, dtype=y.dtype, device=y.device)
        dgate = torch.empty(y.shape, dtype=gate.dtype, device=y.device)
        how = {"groups": ctx.groups, "eps": ctx.eps}
        dweight = gated_norm_backward(
            y, gate, add, weight, dout.contiguous().view(y.shape), dy, dgate, **how
        )
        dadd = None if add is None else dgate.to(add.dtype).view(dout.shape)
        dy, dgate = dy.view(dout.shape), dgate.view(dout.shape)
        return dy, dgate, dadd, dweight, None, None, None, None


def gated_norm(
    y: Tensor,
    gate: Tensor,
    add: Tensor | None,
    weight: Tensor,
    *,
    groups: int,
    eps: float,
    dtype: torch.dtype,
    scale: Tensor | None,
) -> Tensor:
    """`gated_rms_norm` of (B, T, D) tensors; y is contiguous, the last dimension dense."""
    columns = y.shape[2] // groups
    dtype = dtype if scale is None else torch.float8_e4m3fn
    out = torch.empty(y.shape, dtype=dtype, device=y.device)
    align, strides = token_strides(gate, add)
    _gated_norm_kernel[(y.shape[0] * y.shape[1], groups)](
        y,
        gate,
        gate if add is None else add,
        weight,
        weight if scale is None else scale,
        out,
        y.shape[1],
        columns,
        *strides,
        eps,
        HAS_ADD=add is not None,
        HAS_SCALE=scale is not None,
        D=triton.next_power_of_2(columns),
        ALIGN=align,
        num_warps=_warps(columns),
    )
    return out


def group_norm(
    x: Tensor,
    weight: Tensor,
    *,
    groups: int,
    eps: float,
    dtype: torch.dtype,
    scale: Tensor | None,
) -> Tensor:
    """RMSNorm(x) · weight over each of `groups` parts of a contiguous (B, T, D) x."""
    columns = x.shape[2] // groups
    dtype = dtype if scale is None else torch.float8_e4m3fn
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    _group_norm_kernel[(x.shape[0] * x.shape[1], groups)](
        x,
        weight,
        weight if scale is None else scale,
        out,
        columns,
        eps,
        HAS_SCALE=scale is not None,
        D=triton.next_power_of_2(columns),
        num_warps=_warps(columns),
    )
    return out


def _rows(tensor: Tensor) -> Tensor:
    """(..., D) as (B, T, D), dense in D."""
    tensor = tensor if tensor.stride(-1) == 1 else tensor.contiguous()
    return tensor if tensor.ndim == 3 else tensor.flatten(0, -2)[None]


def _warps(columns: int) -> int:
    return 4 if columns <= 1024 else 8
