"""Triton kernels of the causal convolution with SiLU; `conv.py` is their meaning and their twin.

What is added to the input (an equilibrium's injection) is read here, not in a pass of its own.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from equilm.ops.launch import alignment

ROWS, CHANNELS = 32, 128  # tokens and channels of a tile


@triton.jit
def _input(
    x,
    add,
    window,
    t,
    c,
    num_tokens,
    num_channels,
    stride_xt,
    stride_at,
    HAS_ADD: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    W: tl.constexpr,
):
    """x (+ add) at positions t ≥ −(W − 1), before zero from the window; float32."""
    inside = (t >= 0) & (t < num_tokens)
    mask = inside[:, None] & (c < num_channels)[None, :]
    value = tl.load(x + t[:, None] * stride_xt + c[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_ADD:
        at = add + t[:, None] * stride_at + c[None, :]
        value += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if HAS_WINDOW:
        before = ((t < 0) & (t >= 1 - W))[:, None] & (c < num_channels)[None, :]
        at = window + (t[:, None] + W - 1) * num_channels + c[None, :]
        value += tl.load(at, mask=before, other=0.0).to(tl.float32)
    return value


@triton.jit
def _forward_kernel(
    x,
    add,
    weight,
    bias,
    window,
    y,
    num_tokens,
    num_channels,
    stride_xb,
    stride_xt,
    stride_ab,
    stride_at,
    HAS_ADD: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    W: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
    ALIGN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    stride_xb, stride_xt = stride_xb * ALIGN, stride_xt * ALIGN
    stride_ab, stride_at = stride_ab * ALIGN, stride_at * ALIGN
    t = tl.program_id(1) * T + tl.arange(0, T)
    c = tl.program_id(2) * C + tl.arange(0, C)
    c_mask = c < num_channels
    x += row * stride_xb
    add += row * stride_ab
    window += row * (W - 1) * num_channels
    total = tl.zeros((T, C), dtype=tl.float32)
    total += tl.load(bias + c, mask=c_mask, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(W):
        tap_C = tl.load(weight + c * W + tap, mask=c_mask, other=0.0).to(tl.float32)
        total += tap_C[None, :] * _input(
            x,
            add,
            window,
            t - (W - 1) + tap,
            c,
            num_tokens,
            num_channels,
            stride_xt,
            stride_at,
            HAS_ADD,
            HAS_WINDOW,
            W,
        )
    value = total * tl.sigmoid(total)
    at = y + (row * num_tokens + t[:, None]) * num_channels + c[None, :]
    tl.store(at, value.to(y.dtype.element_ty), mask=(t < num_tokens)[:, None] & c_mask[None, :])


@triton.jit
def _inner_backward_kernel(
    x,
    add,
    weight,
    bias,
    window,
    dy,
    dinner,
    dweight,
    dbias,
    num_tokens,
    num_channels,
    stride_xb,
    stride_xt,
    stride_ab,
    stride_at,
    stride_dyb,
    stride_dyt,
    HAS_ADD: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    W: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """dy · SiLU′ before the activation, and the sums over this tile for taps and bias."""
    row = tl.program_id(0).to(tl.int64)
    stride_xb, stride_xt = stride_xb * ALIGN, stride_xt * ALIGN
    stride_ab, stride_at = stride_ab * ALIGN, stride_at * ALIGN
    stride_dyb, stride_dyt = stride_dyb * ALIGN, stride_dyt * ALIGN
    t = tl.program_id(1) * T + tl.arange(0, T)
    c = tl.program_id(2) * C + tl.arange(0, C)
    c_mask = c < num_channels
    mask = (t < num_tokens)[:, None] & c_mask[None, :]
    x += row * stride_xb
    add += row * stride_ab
    window += row * (W - 1) * num_channels
    total = tl.zeros((T, C), dtype=tl.float32)
    total += tl.load(bias + c, mask=c_mask, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(W):
        tap_C = tl.load(weight + c * W + tap, mask=c_mask, other=0.0).to(tl.float32)
        total += tap_C[None, :] * _input(
            x,
            add,
            window,
            t - (W - 1) + tap,
            c,
            num_tokens,
            num_channels,
            stride_xt,
            stride_at,
            HAS_ADD,
            HAS_WINDOW,
            W,
        )
    gate = tl.sigmoid(total)
    at = dy + row * stride_dyb + t[:, None] * stride_dyt + c[None, :]
    slope = tl.load(at, mask=mask, other=0.0).to(tl.float32) * gate * (1 + total * (1 - gate))
    at = dinner + (row * num_tokens + t[:, None]) * num_channels + c[None, :]
    tl.store(at, slope.to(dinner.dtype.element_ty), mask=mask)
    tile = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(dbias + tile * num_channels + c, tl.sum(slope, 0), mask=c_mask)
    for tap in tl.static_range(W):
        seen = _input(
            x,
            add,
            window,
            t - (W - 1) + tap,
            c,
            num_tokens,
            num_channels,
            stride_xt,
            stride_at,
            HAS_ADD,
            HAS_WINDOW,
            W,
        )
        at = dweight + (tile * num_channels + c) * W + tap
        tl.store(at, tl.sum(slope * seen, 0), mask=c_mask)


@triton.jit
def _outer_backward_kernel(
    dinner,
    weight,
    dx,
    dwindow,
    num_tokens,
    num_channels,
    HAS_WINDOW: tl.constexpr,
    W: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
):
    """dx_t = Σ_w weight_w · dinner_{t + W − 1 − w}; positions before zero belong to the window."""
    row = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * T + tl.arange(0, T) - (W - 1)
    c = tl.program_id(2) * C + tl.arange(0, C)
    c_mask = c < num_channels
    dinner += row * num_tokens * num_channels
    total = tl.zeros((T, C), dtype=tl.float32)
    for tap in tl.static_range(W):
        to = t + (W - 1) - tap
        mask = ((to >= 0) & (to < num_tokens))[:, None] & c_mask[None, :]
        at = dinner + to[:, None] * num_channels + c[None, :]
        tap_C = tl.load(weight + c * W + tap, mask=c_mask, other=0.0).to(tl.float32)
        total += tap_C[None, :] * tl.load(at, mask=mask, other=0.0).to(tl.float32)
    mask = ((t >= 0) & (t < num_tokens))[:, None] & c_mask[None, :]
    at = dx + (row * num_tokens + t[:, None]) * num_channels + c[None, :]
    tl.store(at, total.to(dx.dtype.element_ty), mask=mask)
    if HAS_WINDOW:
        at = dwindow + (row * (W - 1) + t[:, None] + W - 1) * num_channels + c[None, :]
        tl.store(at, total, mask=(t < 0)[:, None] & c_mask[None, :])


class ConvSilu(torch.autograd.Function):
    """The outputs of `conv_silu`, of x + add; the next window is left to the caller."""

    @staticmethod
    def forward(ctx: Any, x, add, weight, bias, window):
        x, add = _last_dense(x), _last_dense(add)
        weight, bias = weight.contiguous(), bias.contiguous()
        window = None if window is None else window.contiguous()
        ctx.save_for_backward(x, add, weight, bias, window)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        rows, tokens, channels = x.shape
        align, strides = _strides(x, add)
        _forward_kernel[_grid(rows, tokens, channels)](
            x,
            x if add is None else add,
            weight,
            bias,
            x if window is None else window,
            y,
            tokens,
            channels,
            *strides,
            **_shape(weight, add, window),
            ALIGN=align,
        )
        return y

    @staticmethod
    def backward(ctx: Any, dy):
        x, add, weight, bias, window = ctx.saved_tensors
        dy = _last_dense(dy)
        rows, tokens, channels = x.shape
        grid, shape = _grid(rows, tokens, channels), _shape(weight, add, window)
        align, strides = _strides(x, add, dy)
        dinner = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dweight = torch.empty(grid[0] * grid[1], *weight.shape, device=x.device)
        dbias = torch.empty(grid[0] * grid[1], channels, device=x.device)
        _inner_backward_kernel[grid](
            x,
            x if add is None else add,
            weight,
            bias,
            x if window is None else window,
            dy,
            dinner,
            dweight,
            dbias,
            tokens,
            channels,
            *strides,
            **shape,
            ALIGN=align,
        )
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dwindow = None if window is None else torch.empty_like(window, dtype=torch.float32)
        shape.pop("HAS_ADD")
        _outer_backward_kernel[_grid(rows, tokens + weight.shape[1] - 1, channels)](
            dinner, weight, dx, dwindow if window is not None else dx, tokens, channels, **shape
        )
        return (
            dx,
            None if add is None else dx.to(add.dtype),
            dweight.sum(0).to(weight.dtype),
            dbias.sum(0).to(bias.dtype),
            dwindow,
        )


def _last_dense(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


def _strides(*tensors: Tensor | None) -> tuple[int, list[int]]:
    """Their alignment, and the strides of rows and tokens in units of it."""
    strides = [s for x in tensors for s in ((0, 0) if x is None else x.stride()[:2])]
    align = alignment(strides)
    return align, [stride // align for stride in strides]


def _grid(rows: int, tokens: int, channels: int) -> tuple[int, int, int]:
    return rows, triton.cdiv(tokens, ROWS), triton.cdiv(channels, CHANNELS)


def _shape(weight: Tensor, add: Tensor | None, window: Tensor | None) -> dict[str, Any]:
    return {
        "HAS_ADD": add is not None,
        "HAS_WINDOW": window is not None,
        "W": weight.shape[1],
        "T": ROWS,
        "C": CHANNELS,
    }
