"""Triton kernels of an MLP's gate; `swiglu.py` is their meaning and their twin."""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 2, 1024  # of a tile


@triton.jit
def _tile(num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows and columns of this program's tile, and which of them there are."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None]
    return row, column, (row < num_rows) & (column < num_columns)


@triton.jit
def forward(h, out, num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """out = SiLU(gate) · value, h being [gate | value]."""
    row, column, mask = _tile(num_rows, num_columns, ROWS, COLUMNS)
    at = 2 * row * num_columns + column
    gate = tl.load(h + at, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(h + at + num_columns, mask=mask, other=0.0).to(tl.float32)
    gated = gate * tl.sigmoid(gate) * value
    tl.store(out + row * num_columns + column, gated.to(out.dtype.element_ty), mask=mask)


@triton.jit
def backward(h, dout, dh, out, num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The cotangent of h, and out once more on the way."""
    row, column, mask = _tile(num_rows, num_columns, ROWS, COLUMNS)
    at, narrow = 2 * row * num_columns + column, row * num_columns + column
    gate = tl.load(h + at, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(h + at + num_columns, mask=mask, other=0.0).to(tl.float32)
    d = tl.load(dout + narrow, mask=mask, other=0.0).to(tl.float32)
    open_gate = tl.sigmoid(gate)
    silu = gate * open_gate
    dgate = d * value * open_gate * (1 + gate * (1 - open_gate))
    tl.store(dh + at, dgate.to(dh.dtype.element_ty), mask=mask)
    tl.store(dh + at + num_columns, (d * silu).to(dh.dtype.element_ty), mask=mask)
    tl.store(out + narrow, (silu * value).to(out.dtype.element_ty), mask=mask)


class SwigluLinear(torch.autograd.Function):
    """`swiglu_linear`; keeps h and the weight."""

    @staticmethod
    def forward(ctx: Any, h, weight):
        h = h.contiguous()
        ctx.save_for_backward(h, weight)
        return F.linear(_gated(h), weight)

    @staticmethod
    def backward(ctx: Any, dy):
        h, weight = ctx.saved_tensors
        dh, gated = _cotangent(h, dy @ weight)
        needs_weight = ctx.needs_input_grad[1]
        return dh, dy.flatten(0, -2).T @ gated.flatten(0, -2) if needs_weight else None


def _sizes(h: Tensor) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """The grid, and what every kernel is told."""
    columns = h.shape[-1] // 2
    rows = h.numel() // h.shape[-1]
    grid = triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS)
    return grid, (rows, columns, ROWS, COLUMNS)


def _gated(h: Tensor) -> Tensor:
    grid, sizes = _sizes(h)
    out = torch.empty(*h.shape[:-1], sizes[1], dtype=h.dtype, device=h.device)
    forward[grid](h, out, *sizes)
    return out


def _cotangent(h: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
    """Return dh, and the gate's output."""
    grid, sizes = _sizes(h)
    dout = dout.contiguous()
    dh = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    out = torch.empty(dout.shape, dtype=h.dtype, device=h.device)
    backward[grid](h, dout, dh, out, *sizes)
    return dh, out
