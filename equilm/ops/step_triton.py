"""Triton kernels of the scan's step sizes: dt = softplus(x + add + bias), zero behind `valid`.

Their meaning is in `gated_scan.py`. The decay rates −exp(log_rate) come from the same launch.
Strides come in units of ALIGN (`launch.py`).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from equilm.ops.launch import token_strides

TOKENS = 32  # of a program


class Inputs(NamedTuple):
    """Raw step sizes in the last dimension of a wider tensor, and what makes them positive."""

    x: Tensor  # (B, T, H)
    add: Tensor | None  # (B, T, H)
    bias: Tensor  # (H,)
    log_rate: Tensor  # (H,)
    valid: Tensor | None  # (B,)


@triton.jit
def _softplus(value):
    """log(1 + e) by the series of artanh in z = e / (2 + e) ≤ 1/3: log loses a small e's digits."""
    e = tl.exp(-tl.abs(value))
    z = e / (2 + e)
    q = z * z
    series = 1 / 9 + q * (1 / 11 + q * (1 / 13 + q * (1 / 15)))
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * series)))
    return tl.maximum(value, 0.0) + 2 * z * series


@triton.jit
def _raw(
    x,
    add,
    bias,
    row,
    t,
    h,
    mask,
    num_heads,
    stride_xb,
    stride_xt,
    stride_ab,
    stride_at,
    HAS_ADD: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """x (+ add) + bias, in float32."""
    at = row * (stride_xb * ALIGN) + t[:, None] * (stride_xt * ALIGN) + h[None, :]
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_ADD:
        at = row * (stride_ab * ALIGN) + t[:, None] * (stride_at * ALIGN) + h[None, :]
        value += tl.load(add + at, mask=mask, other=0.0).to(tl.float32)
    return value + tl.load(bias + h, mask=h < num_heads, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _forward(
    x,
    add,
    bias,
    log_rate,
    valid,
    dt,
    rate,
    num_tokens,
    num_heads,
    stride_xb,
    stride_xt,
    stride_ab,
    stride_at,
    HAS_ADD: tl.constexpr,
    HAS_VALID: tl.constexpr,
    T: tl.constexpr,
    H: tl.constexpr,
    ALIGN: tl.constexpr,
):
    row, t = tl.program_id(0).to(tl.int64), tl.program_id(1) * T + tl.arange(0, T)
    h = tl.arange(0, H)
    mask = (t < num_tokens)[:, None] & (h < num_heads)[None, :]
    raw = _raw(
        x, add, bias, row, t, h, mask, num_heads,
        stride_xb, stride_xt, stride_ab, stride_at, HAS_ADD, ALIGN,
    )  # fmt: skip
    step = _softplus(raw)
    if HAS_VALID:
        step = tl.where((t < tl.load(valid + row))[:, None], step, 0.0)
    tl.store(dt + (row * num_tokens + t[:, None]) * num_heads + h[None, :], step, mask=mask)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        value = tl.load(log_rate + h, mask=h < num_heads, other=0.0).to(tl.float32)
        tl.store(rate + h, -tl.exp(value), mask=h < num_heads)


@triton.jit
def _backward(
    x,
    add,
    bias,
    valid,
    ddt,
    dx,
    dbias,
    num_tokens,
    num_heads,
    stride_xb,
    stride_xt,
    stride_ab,
    stride_at,
    stride_dxb,
    stride_dxt,
    HAS_ADD: tl.constexpr,
    HAS_VALID: tl.constexpr,
    T: tl.constexpr,
    H: tl.constexpr,
    ALIGN: tl.constexpr,
):
    row, t = tl.program_id(0).to(tl.int64), tl.program_id(1) * T + tl.arange(0, T)
    h = tl.arange(0, H)
    mask = (t < num_tokens)[:, None] & (h < num_heads)[None, :]
    raw = _raw(
        x, add, bias, row, t, h, mask, num_heads,
        stride_xb, stride_xt, stride_ab, stride_at, HAS_ADD, ALIGN,
    )  # fmt: skip
    at = ddt + (row * num_tokens + t[:, None]) * num_heads + h[None, :]
    slope = tl.load(at, mask=mask, other=0.0) * tl.sigmoid(raw)
    if HAS_VALID:
        slope = tl.where((t < tl.load(valid + row))[:, None], slope, 0.0)
    at = dx + row * (stride_dxb * ALIGN) + t[:, None] * (stride_dxt * ALIGN) + h[None, :]
    tl.store(at, slope.to(dx.dtype.element_ty), mask=mask)
    tile = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(dbias + tile * num_heads + h, tl.sum(slope, 0), mask=h < num_heads)


def step_sizes(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return dt_BTH and the rates a_H, in float32."""
    x, add, bias, log_rate, valid = inputs
    rows, tokens, heads = x.shape
    dt = torch.empty(x.shape, device=x.device)
    rate = torch.empty(heads, device=x.device)
    align, strides = token_strides(x, add)
    _forward[(rows, triton.cdiv(tokens, TOKENS))](
        x,
        x if add is None else add,
        bias,
        log_rate,
        valid,
        dt,
        rate,
        tokens,
        heads,
        *strides,
        HAS_ADD=add is not None,
        HAS_VALID=valid is not None,
        T=TOKENS,
        H=triton.next_power_of_2(heads),
        ALIGN=align,
    )
    return dt, rate


def step_sizes_backward(inputs: Inputs, ddt: Tensor, dx: Tensor) -> Tensor:
    """Write dx (B, T, H) for the cotangent ddt, and return that of the bias."""
    x, add, bias, _, valid = inputs
    rows, tokens, heads = x.shape
    grid = rows, triton.cdiv(tokens, TOKENS)
    dbias = torch.empty(grid[0] * grid[1], heads, device=x.device)
    align, strides = token_strides(x, add, dx)
    _backward[grid](
        x,
        x if add is None else add,
        bias,
        valid,
        ddt,
        dx,
        dbias,
        tokens,
        heads,
        *strides,
        HAS_ADD=add is not None,
        HAS_VALID=valid is not None,
        T=TOKENS,
        H=triton.next_power_of_2(heads),
        ALIGN=align,
    )
    return dbias.sum(0)
