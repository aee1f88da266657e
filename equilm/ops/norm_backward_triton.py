"""Triton kernels of the RMS norms' backward passes; those of the forward are in `norm_triton.py`.

A program walks over some rows, the next already on their way while one is worked on, and sums what
belongs to the weight. Nothing but the inputs is kept from the forward pass.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from equilm.ops.launch import token_strides

STAGES = 3  # rows on their way to a program, and the one it works on


@triton.jit
def _through_norm(value, dnormed, weight_D, num_columns, eps):
    """The value's norm before its weight, and the cotangent of the value."""
    scale = tl.rsqrt(tl.sum(value * value, 0) / num_columns + eps)
    unit = value * scale
    dunit = dnormed * weight_D
    return unit, scale * (dunit - unit * (tl.sum(dunit * unit, 0) / num_columns))


@triton.jit
def _add_norm_backward(
    total,
    weight,
    dnormed,
    dtotal,
    dr,
    dy,
    dweight,
    num_rows,
    num_columns,
    eps,
    rows_per_program,
    HAS_DTOTAL: tl.constexpr,
    HAS_DY: tl.constexpr,
    D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dr = dtotal + the cotangent through the norm; dy is the same in another type."""
    first = tl.program_id(0).to(tl.int64) * rows_per_program
    d = tl.arange(0, D)
    mask = d < num_columns
    weight_D = tl.load(weight + d, mask=mask, other=0.0).to(tl.float32)
    dweight_D = tl.zeros((D,), dtype=tl.float32)
    for row in tl.range(first, min(first + rows_per_program, num_rows), num_stages=STAGES):
        at = row * num_columns + d
        value = tl.load(total + at, mask=mask, other=0.0)
        dnormed_D = tl.load(dnormed + at, mask=mask, other=0.0).to(tl.float32)
        unit_D, dvalue = _through_norm(value, dnormed_D, weight_D, num_columns, eps)
        dweight_D += dnormed_D * unit_D
        if HAS_DTOTAL:
            dvalue += tl.load(dtotal + at, mask=mask, other=0.0)
        tl.store(dr + at, dvalue, mask=mask)
        if HAS_DY:
            tl.store(dy + at, dvalue.to(dy.dtype.element_ty), mask=mask)
    tl.store(dweight + tl.program_id(0) * num_columns + d, dweight_D, mask=mask)


@triton.jit
def _gated_norm_backward(
    y,
    gate,
    add,
    weight,
    dout,
    dy,
    dgate,
    dweight,
    num_rows,
    num_tokens,
    num_columns,
    stride_gb,
    stride_gt,
    stride_ab,
    stride_at,
    stride_db,
    stride_dt,
    eps,
    rows_per_program,
    HAS_ADD: tl.constexpr,
    D: tl.constexpr,
    ALIGN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Of RMSNorm(y · SiLU(gate + add)) · weight, one group of columns; dy may be y itself."""
    first, columns = tl.program_id(0) * rows_per_program, num_columns * tl.num_programs(1)
    d = tl.arange(0, D)
    mask = d < num_columns
    d += tl.program_id(1) * num_columns
    weight_D = tl.load(weight + d, mask=mask, other=0.0).to(tl.float32)
    dweight_D = tl.zeros((D,), dtype=tl.float32)
    for done in tl.range(0, min(rows_per_program, num_rows - first), num_stages=STAGES):
        # Divided in 32 bits: in 64 it would cost as much as the rest.
        row = first + done
        b, t = (row // num_tokens).to(tl.int64), row % num_tokens
        here = row.to(tl.int64) * columns + d
        at = b * (stride_gb * ALIGN) + t * (stride_gt * ALIGN) + d
        gate_D = tl.load(gate + at, mask=mask, other=0.0).to(tl.float32)
        if HAS_ADD:
            at = b * (stride_ab * ALIGN) + t * (stride_at * ALIGN) + d
            gate_D += tl.load(add + at, mask=mask, other=0.0).to(tl.float32)
        y_D = tl.load(y + here, mask=mask, other=0.0).to(tl.float32)
        dout_D = tl.load(dout + here, mask=mask, other=0.0).to(tl.float32)
        open_D = tl.sigmoid(gate_D)
        silu_D = gate_D * open_D
        unit_D, dvalue = _through_norm(y_D * silu_D, dout_D, weight_D, num_columns, eps)
        dweight_D += dout_D * unit_D
        tl.store(dy + here, (dvalue * silu_D).to(dy.dtype.element_ty), mask=mask)
        dgate_D = dvalue * y_D * open_D * (1 + gate_D * (1 - open_D))
        at = b * (stride_db * ALIGN) + t * (stride_dt * ALIGN) + d
        tl.store(dgate + at, dgate_D.to(dgate.dtype.element_ty), mask=mask)
    tl.store(dweight + tl.program_id(0) * columns + d, dweight_D, mask=mask)


def add_norm_backward(
    total: Tensor,
    weight: Tensor,
    dtotal: Tensor | None,
    dnormed: Tensor,
    y_dtype: torch.dtype | None,
    eps: float,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return dr in float32, dy in its type (`None` if there was none), and dweight.

    Args:
        total: (..., D) contiguous, float32.
        weight: (D,).
        dtotal: (..., D) contiguous, float32; `None` means zero.
        dnormed: (..., D) contiguous.
        y_dtype: Of what was added.
        eps: As in the forward pass.
    """
    columns = total.shape[-1]
    rows = total.numel() // columns
    per_program, programs = _programs(rows)
    dr = torch.empty(total.shape, device=total.device)
    narrow = y_dtype not in (None, torch.float32)
    dy = torch.empty(total.shape, dtype=y_dtype, device=total.device) if narrow else dr
    dweight = torch.empty(programs, columns, device=total.device)
    _add_norm_backward[(programs,)](
        total,
        weight,
        dnormed,
        total if dtotal is None else dtotal,
        dr,
        dy,
        dweight,
        rows,
        columns,
        eps,
        per_program,
        HAS_DTOTAL=dtotal is not None,
        HAS_DY=narrow,
        D=triton.next_power_of_2(columns),
        STAGES=STAGES,
        num_warps=_warps(columns),
    )
    return dr, None if y_dtype is None else dy, dweight.sum(0).to(weight.dtype)


def gated_norm_backward(
    y: Tensor,
    gate: Tensor,
    add: Tensor | None,
    weight: Tensor,
    dout: Tensor,
    dy: Tensor,
    dgate: Tensor,
    *,
    groups: int,
    eps: float,
) -> Tensor:
    """Write dy and dgate, and return dweight.

    Args:
        y: (B, T, D) contiguous.
        gate: (B, T, D).
        add: (B, T, D); its cotangent is dgate too.
        weight: (D,).
        dout: (B, T, D) contiguous.
        dy: (B, T, D) contiguous, overwritten; may be y.
        dgate: (B, T, D), overwritten.
        groups: As in the forward pass.
        eps: As in the forward pass.
    """
    columns = y.shape[2] // groups
    rows = y.shape[0] * y.shape[1]
    per_program, programs = _programs(rows)
    dweight = torch.empty(programs, y.shape[2], device=y.device)
    align, strides = token_strides(gate, add, dgate)
    _gated_norm_backward[(programs, groups)](
        y,
        gate,
        gate if add is None else add,
        weight,
        dout,
        dy,
        dgate,
        dweight,
        rows,
        y.shape[1],
        columns,
        *strides,
        eps,
        per_program,
        HAS_ADD=add is not None,
        D=triton.next_power_of_2(columns),
        ALIGN=align,
        STAGES=STAGES,
        num_warps=_warps(columns),
    )
    return dweight.sum(0).to(weight.dtype)


def _programs(rows: int) -> tuple[int, int]:
    """Rows of a program, and how many programs: about as many as an H200 holds at once."""
    per_program = triton.cdiv(rows, 512)
    return per_program, triton.cdiv(rows, per_program)


def _warps(columns: int) -> int:
    """Eight columns a thread: the gated norm keeps a dozen numbers of each."""
    return min(max(triton.next_power_of_2(columns) // 256, 1), 16)
