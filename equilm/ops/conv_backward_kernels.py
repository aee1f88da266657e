"""The Triton kernel of the convolution's backward pass; names as in `conv_kernels.py`.

With d_t = dy_t · SiLU′ before the activation, dx_t = Σ_j w_j d_{t + j}: a program makes the d of
its tokens and of the next three, which its neighbour makes again. Read `conv_kernels.py` first.
"""

import triton
import triton.language as tl

from equilm.ops.conv_kernels import four_open, opens_at, read_before, read_four, read_taps, within


@triton.jit
def _read_cotangent(dy_C, dtail_C, t, stop, c, num_channels, num_dy, stride_dyt):
    """The first channels come in one tensor, the others in another."""
    mask_C = within(t, 0, stop, c < num_dy)
    dy = tl.load(dy_C + t * stride_dyt, mask=mask_C, other=0.0).to(tl.float32)
    mask_C = within(t, 0, stop, (c >= num_dy) & (c < num_channels))
    at = dtail_C + t * (num_channels - num_dy)
    return dy + tl.load(at, mask=mask_C, other=0.0).to(tl.float32)


@triton.jit
def _read_four_cotangents(dy_C, dtail_C, t, stop, c, num_channels, num_dy, stride_dyt):
    d0 = _read_cotangent(dy_C, dtail_C, t, stop, c, num_channels, num_dy, stride_dyt)
    d1 = _read_cotangent(dy_C, dtail_C, t + 1, stop, c, num_channels, num_dy, stride_dyt)
    d2 = _read_cotangent(dy_C, dtail_C, t + 2, stop, c, num_channels, num_dy, stride_dyt)
    d3 = _read_cotangent(dy_C, dtail_C, t + 3, stop, c, num_channels, num_dy, stride_dyt)
    return d0, d1, d2, d3


@triton.jit
def backward(
    x,
    add,
    weight,
    bias,
    window,
    valid,
    starts,
    dy,
    dtail,
    dnext,
    dx,
    dwindow,
    sums,
    num_tokens,
    num_channels,
    num_dy,
    stride_xb,
    stride_xt,
    stride_ab,
    stride_at,
    stride_dyb,
    stride_dyt,
    stride_dxb,
    stride_dxt,
    HAS_ADD: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    HAS_NEXT: tl.constexpr,
    W: tl.constexpr,
    TOKENS: tl.constexpr,
    C: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """dx, dwindow, and the sums over this tile: of the taps as (C, W), then of the bias."""
    row, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * TOKENS
    stop = min(first + TOKENS, num_tokens)
    c = tl.program_id(2) * C + tl.arange(0, C)
    mask_C = c < num_channels
    xt, at, dyt, dxt = stride_xt * ALIGN, stride_at * ALIGN, stride_dyt * ALIGN, stride_dxt * ALIGN
    x_C, add_C = x + row * (stride_xb * ALIGN) + c, add + row * (stride_ab * ALIGN) + c
    dy_C, dx_C = dy + row * (stride_dyb * ALIGN) + c, dx + row * (stride_dxb * ALIGN) + c
    dtail_C = dtail + row * num_tokens * (num_channels - num_dy) + (c - num_dy)
    slots = row * (W - 1) * num_channels + c
    window_C, dwindow_C, dnext_C = window + slots, dwindow + slots, dnext + slots
    limit = num_tokens
    if HAS_VALID:
        limit = tl.load(valid + row).to(tl.int32)
    w0, w1, w2, w3, bias_C = read_taps(weight, bias, c, mask_C, W)
    p1 = read_before(
        x_C, add_C, window_C, first - 1, stop, mask_C, num_channels, xt, at, HAS_ADD, HAS_WINDOW, W
    )
    p2 = read_before(
        x_C, add_C, window_C, first - 2, stop, mask_C, num_channels, xt, at, HAS_ADD, HAS_WINDOW, W
    )
    p3 = read_before(
        x_C, add_C, window_C, first - 3, stop, mask_C, num_channels, xt, at, HAS_ADD, HAS_WINDOW, W
    )
    if HAS_STARTS:
        starts += row * num_tokens
        o1, o2 = opens_at(starts, first - 1, num_tokens), opens_at(starts, first - 2, num_tokens)
        p2, p3 = tl.where(o1, 0.0, p2), tl.where(o1 | o2, 0.0, p3)
    q1 = tl.zeros((C,), dtype=tl.float32)
    q2, q3, dw0, dw1, dw2, dw3, dbias = q1, q1, q1, q1, q1, q1, q1
    # The last group lies behind the tile, or its last tokens do.
    for done in range(0, stop - first + 3, 4):
        start = first + done
        n = read_four(x_C, add_C, start, num_tokens, mask_C, xt, at, HAS_ADD)
        dy_4 = _read_four_cotangents(dy_C, dtail_C, start, num_tokens, c, num_channels, num_dy, dyt)
        mine = (start < stop).to(tl.float32)
        if HAS_STARTS:
            opens = four_open(starts, start, num_tokens)
        for i in tl.static_range(4):
            if HAS_STARTS:
                o0 = opens[i]
                p1, p2 = tl.where(o0, 0.0, p1), tl.where(o0, 0.0, p2)
                p3 = tl.where(o0, 0.0, p3)
            total = bias_C + w0 * n[i] + w1 * p1 + w2 * p2 + w3 * p3
            gate = tl.sigmoid(total)
            d = dy_4[i] * gate * (1 + total * (1 - gate))
            counted = d * mine
            dbias += counted
            dw0, dw1 = dw0 + counted * n[i], dw1 + counted * p1
            dw2, dw3 = dw2 + counted * p2, dw3 + counted * p3
            # Of the input three tokens before this d; before zero it belongs to the window.
            value, t = w0 * q3 + w1 * q2 + w2 * q1 + w3 * d, start + i - 3
            if HAS_STARTS:
                value = tl.where(o1, 0.0, w2 * q1 + tl.where(o0, 0.0, w3 * d))
                value = w0 * q3 + tl.where(o2, 0.0, w1 * q2 + value)
            if HAS_NEXT:
                slot = t - limit + (W - 1)
                kept_C = within(slot, 0, W - 1, mask_C)
                if HAS_STARTS:
                    parted = (o2 & (t + 1 < limit)) | (o1 & (t + 2 < limit))
                    kept_C = tl.where(parted, False, kept_C)
                value += tl.load(dnext_C + slot * num_channels, mask=kept_C, other=0.0)
            inside_C = within(t, first, stop, mask_C)
            tl.store(dx_C + t * dxt, value.to(dx.dtype.element_ty), mask=inside_C)
            if HAS_WINDOW:
                before_C = within(t, 1 - W, 0, mask_C)
                tl.store(dwindow_C + (t + W - 1) * num_channels, value, mask=before_C)
            p1, p2, p3, q1, q2, q3 = n[i], p1, p2, d, q1, q2
            if HAS_STARTS:
                o1, o2 = o0, o1
    sums += (row * tl.num_programs(1) + tl.program_id(1)) * num_channels * (W + 1)
    at = sums + c * W + (W - 1)
    tl.store(at, dw0, mask=mask_C)
    if W > 1:
        tl.store(at - 1, dw1, mask=mask_C)
    if W > 2:
        tl.store(at - 2, dw2, mask=mask_C)
    if W > 3:
        tl.store(at - 3, dw3, mask=mask_C)
    tl.store(sums + num_channels * W + c, dbias, mask=mask_C)
