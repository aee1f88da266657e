"""Triton kernels of the RMS norms; `norm.py` is their meaning and their twin.

One program a row. The norm of the residual stream adds the last block's output on the way; the
gated norm adds the injection to its gate.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from equilm.ops.launch import alignment


@triton.jit
def _scaled(value, scale, HAS_SCALE: tl.constexpr):
    """What goes out in e4m3 is divided by its scale and saturated."""
    if HAS_SCALE:
        value = tl.clamp(value / tl.load(scale), -448.0, 448.0)
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
        tl.store(total + row * num_columns + d, value, mask=mask)
    value *= tl.rsqrt(tl.sum(value * value, 0) / num_columns + eps)
    value *= tl.load(weight + d, mask=mask, other=0.0).to(tl.float32)
    value = _scaled(value, scale, HAS_SCALE)
    tl.store(normed + row * num_columns + d, value.to(normed.dtype.element_ty), mask=mask)


@triton.jit
def _add_norm_backward_kernel(
    total,
    weight,
    dnormed,
    dtotal,
    dr,
    dweight,
    num_rows,
    num_columns,
    eps,
    rows_per_program,
    HAS_TOTAL: tl.constexpr,
    D: tl.constexpr,
):
    """dr = dtotal + the cotangent through the norm; dweight is summed over this program's rows."""
    first = tl.program_id(0).to(tl.int64) * rows_per_program
    d = tl.arange(0, D)
    mask = d < num_columns
    weight_D = tl.load(weight + d, mask=mask, other=0.0).to(tl.float32)
    dweight_D = tl.zeros((D,), dtype=tl.float32)
    for row in range(first, min(first + rows_per_program, num_rows)):
        value = tl.load(total + row * num_columns + d, mask=mask, other=0.0).to(tl.float32)
        dnormed_D = tl.load(dnormed + row * num_columns + d, mask=mask, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(value * value, 0) / num_columns + eps)
        unit_D = value * scale
        dweight_D += dnormed_D * unit_D
        dunit_D = dnormed_D * weight_D
        through_D = scale * (dunit_D - unit_D * (tl.sum(dunit_D * unit_D, 0) / num_columns))
        if HAS_TOTAL:
            through_D += tl.load(dtotal + row * num_columns + d, mask=mask, other=0.0)
        tl.store(dr + row * num_columns + d, through_D.to(dr.dtype.element_ty), mask=mask)
    tl.store(dweight + tl.program_id(0) * num_columns + d, dweight_D, mask=mask)


@triton.jit
def _gate(gate, add, row, stride_g, stride_a, d, mask, HAS_ADD: tl.constexpr, ALIGN: tl.constexpr):
    stride_g, stride_a = stride_g * ALIGN, stride_a * ALIGN
    value = tl.load(gate + row * stride_g + d, mask=mask, other=0.0).to(tl.float32)
    if HAS_ADD:
        value += tl.load(add + row * stride_a + d, mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def _gated_norm_kernel(
    y,
    gate,
    add,
    weight,
    scale,
    out,
    num_groups,
    num_columns,
    stride_g,
    stride_a,
    eps,
    HAS_ADD: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    D: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """RMSNorm(y · SiLU(gate + add)) · weight of one group of one row."""
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = tl.arange(0, D)
    mask = d < num_columns
    d += group * num_columns
    gate_D = _gate(gate, add, row, stride_g, stride_a, d, mask, HAS_ADD, ALIGN)
    at = row * num_columns * num_groups + d
    value = tl.load(y + at, mask=mask, other=0.0).to(tl.float32) * gate_D * tl.sigmoid(gate_D)
    value *= tl.rsqrt(tl.sum(value * value, 0) / num_columns + eps)
    value *= tl.load(weight + d, mask=mask, other=0.0).to(tl.float32)
    value = _scaled(value, scale, HAS_SCALE)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gated_norm_backward_kernel(
    y,
    gate,
    add,
    weight,
    dout,
    dy,
    dgate,
    dweight,
    num_rows,
    num_groups,
    num_columns,
    stride_g,
    stride_a,
    eps,
    rows_per_program,
    HAS_ADD: tl.constexpr,
    D: tl.constexpr,
    ALIGN: tl.constexpr,
):
    first, group = tl.program_id(0).to(tl.int64) * rows_per_program, tl.program_id(1)
    d = tl.arange(0, D)
    mask = d < num_columns
    d += group * num_columns
    weight_D = tl.load(weight + d, mask=mask, other=0.0).to(tl.float32)
    dweight_D = tl.zeros((D,), dtype=tl.float32)
    for row in range(first, min(first + rows_per_program, num_rows)):
        gate_D = _gate(gate, add, row, stride_g, stride_a, d, mask, HAS_ADD, ALIGN)
        at = row * num_columns * num_groups + d
        y_D = tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
        open_D = tl.sigmoid(gate_D)
        silu_D = gate_D * open_D
        value = y_D * silu_D
        dout_D = tl.load(dout + at, mask=mask, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(value * value, 0) / num_columns + eps)
        unit_D = value * scale
        dweight_D += dout_D * unit_D
        dunit_D = dout_D * weight_D
        dvalue_D = scale * (dunit_D - unit_D * (tl.sum(dunit_D * unit_D, 0) / num_columns))
        tl.store(dy + at, (dvalue_D * silu_D).to(dy.dtype.element_ty), mask=mask)
        dgate_D = dvalue_D * y_D * open_D * (1 + gate_D * (1 - open_D))
        tl.store(dgate + at, dgate_D.to(dgate.dtype.element_ty), mask=mask)
    columns = num_columns * num_groups
    tl.store(dweight + tl.program_id(0) * columns + d, dweight_D, mask=mask)


class AddNorm(torch.autograd.Function):
    """(r + y in float32, its norm in the type asked for); y may be missing."""

    @staticmethod
    def forward(ctx: Any, r, y, weight, eps, dtype, scale):
        r = r.contiguous()
        y = None if y is None else y.contiguous()
        columns = r.shape[-1]
        rows = r.numel() // columns
        total = r if y is None else torch.empty(r.shape, device=r.device)
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
        ctx.eps, ctx.y_dtype = eps, None if y is None else y.dtype
        return total, normed

    @staticmethod
    def backward(ctx: Any, dtotal, dnormed):
        total, weight = ctx.saved_tensors
        columns = total.shape[-1]
        rows = total.numel() // columns
        dr = torch.empty(total.shape, dtype=total.dtype, device=total.device)
        per_program = triton.cdiv(rows, 1024)
        programs = triton.cdiv(rows, per_program)
        dweight = torch.empty(programs, columns, device=total.device)
        _add_norm_backward_kernel[(programs,)](
            total,
            weight,
            dnormed.contiguous(),
            dtotal.contiguous(),
            dr,
            dweight,
            rows,
            columns,
            ctx.eps,
            per_program,
            HAS_TOTAL=True,
            D=triton.next_power_of_2(columns),
            num_warps=_warps(columns),
        )
        dy = None if ctx.y_dtype is None else dr.to(ctx.y_dtype)
        return dr, dy, dweight.sum(0).to(weight.dtype), None, None, None


class GatedNorm(torch.autograd.Function):
    """RMSNorm(y · SiLU(gate + add)) · weight by groups, in the type asked for."""

    @staticmethod
    def forward(ctx: Any, y, gate, add, weight, groups, eps, dtype, scale):
        y = y.contiguous()
        columns = y.shape[-1] // groups
        rows = y.numel() // y.shape[-1]
        gate, add = _flat_rows(gate), None if add is None else _flat_rows(add)
        dtype = dtype if scale is None else torch.float8_e4m3fn
        out = torch.empty(y.shape, dtype=dtype, device=y.device)
        align, strides = _strides(gate, add)
        _gated_norm_kernel[(rows, groups)](
            y,
            gate,
            gate if add is None else add,
            weight,
            weight if scale is None else scale,
            out,
            groups,
            columns,
            *strides,
            eps,
            HAS_ADD=add is not None,
            HAS_SCALE=scale is not None,
            D=triton.next_power_of_2(columns),
            ALIGN=align,
            num_warps=_warps(columns),
        )
        ctx.save_for_backward(y, gate, add, weight)
        ctx.groups, ctx.eps = groups, eps
        return out

    @staticmethod
    def backward(ctx: Any, dout):
        y, gate, add, weight = ctx.saved_tensors
        columns = y.shape[-1] // ctx.groups
        rows = y.numel() // y.shape[-1]
        dy = torch.empty(y.shape, dtype=y.dtype, device=y.device)
        dgate = torch.empty(y.shape, dtype=gate.dtype, device=y.device)
        per_program = triton.cdiv(rows, 1024)
        programs = triton.cdiv(rows, per_program)
        dweight = torch.empty(programs, y.shape[-1], device=y.device)
        align, strides = _strides(gate, add)
        _gated_norm_backward_kernel[(programs, ctx.groups)](
            y,
            gate,
            gate if add is None else add,
            weight,
            dout.contiguous(),
            dy,
            dgate,
            dweight,
            rows,
            ctx.groups,
            columns,
            *strides,
            ctx.eps,
            per_program,
            HAS_ADD=add is not None,
            D=triton.next_power_of_2(columns),
            ALIGN=align,
            num_warps=_warps(columns),
        )
        dadd = None if add is None else dgate.to(add.dtype)
        return dy, dgate, dadd, dweight.sum(0).to(weight.dtype), None, None, None, None


def _flat_rows(tensor: Tensor) -> Tensor:
    """A view whose rows lie at one distance from each other."""
    whole = tensor.ndim == 2 or tensor.stride(-3) == tensor.shape[-2] * tensor.stride(-2)
    return tensor if tensor.stride(-1) == 1 and whole else tensor.contiguous()


def _strides(*tensors: Tensor | None) -> tuple[int, list[int]]:
    """Their alignment, and the strides of rows in units of it."""
    strides = [0 if tensor is None else tensor.stride(-2) for tensor in tensors]
    align = alignment(strides)
    return align, [stride // align for stride in strides]


def _warps(columns: int) -> int:
    return 4 if columns <= 1024 else 8
