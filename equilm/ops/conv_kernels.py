"""The Triton kernels that `conv_triton.py` launches: tiles of T tokens by C channels, W taps.

Strides come in units of ALIGN (`launch.py`). Read `conv_triton.py` first.
"""

import triton
import triton.language as tl


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
def _convolved(
    x,
    add,
    weight,
    bias,
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
    T: tl.constexpr,
    C: tl.constexpr,
):
    """bias + Σ_w weight_w · (x + add)_{t − W + 1 + w}: before the activation."""
    mask = c < num_channels
    total = tl.zeros((T, C), dtype=tl.float32)
    total += tl.load(bias + c, mask=mask, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(W):
        tap_C = tl.load(weight + c * W + tap, mask=mask, other=0.0).to(tl.float32)
        to = t - (W - 1) + tap
        total += tap_C[None, :] * _input(
            x,
            add,
            window,
            to,
            c,
            num_tokens,
            num_channels,
            stride_xt,
            stride_at,
            HAS_ADD,
            HAS_WINDOW,
            W,
        )
    return total


@triton.jit
def forward(
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
    total = _convolved(
        x,
        add,
        weight,
        bias,
        window,
        t,
        c,
        num_tokens,
        num_channels,
        stride_xt,
        stride_at,
        HAS_ADD,
        HAS_WINDOW,
        W,
        T,
        C,
    )
    value = total * tl.sigmoid(total)
    at = y + (row * num_tokens + t[:, None]) * num_channels + c[None, :]
    tl.store(at, value.to(y.dtype.element_ty), mask=(t < num_tokens)[:, None] & c_mask[None, :])


@triton.jit
def inner_backward(
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
    total = _convolved(
        x,
        add,
        weight,
        bias,
        window,
        t,
        c,
        num_tokens,
        num_channels,
        stride_xt,
        stride_at,
        HAS_ADD,
        HAS_WINDOW,
        W,
        T,
        C,
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
def outer_backward(
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
