"""The Triton kernels that `conv_triton.py` launches: a program walks over TOKENS of C channels.

Every input is read once, four tokens at a time, and the last three stay in registers; so there are
at most four taps, w0 for the newest input, and those that W lacks are zero. With d_t = dy_t · SiLU′
before the activation, dx_t = Σ_j w_j d_{t + j}: a program of the backward pass makes the d of its
tokens and of the next three, which its neighbour makes again. A token that opens a document lets
nothing through from one side of it to the other. Strides come in units of ALIGN (`launch.py`).
"""

import triton
import triton.language as tl


@triton.jit
def _within(t, low, stop, mask_C):
    """mask_C where low ≤ t < stop; Triton's interpreter cannot widen a truth, so widen t."""
    t_C = t + tl.zeros_like(mask_C).to(tl.int32)
    return mask_C & (t_C >= low) & (t_C < stop)


@triton.jit
def _read(x_C, add_C, t, stop, mask_C, stride_xt, stride_at, HAS_ADD: tl.constexpr):
    """x (+ add) at token t in [0, stop), in float32; zero elsewhere."""
    mask_C = _within(t, 0, stop, mask_C)
    value = tl.load(x_C + t * stride_xt, mask=mask_C, other=0.0).to(tl.float32)
    if HAS_ADD:
        value += tl.load(add_C + t * stride_at, mask=mask_C, other=0.0).to(tl.float32)
    return value


@triton.jit
def _read_four(x_C, add_C, t, stop, mask_C, stride_xt, stride_at, HAS_ADD: tl.constexpr):
    n0 = _read(x_C, add_C, t, stop, mask_C, stride_xt, stride_at, HAS_ADD)
    n1 = _read(x_C, add_C, t + 1, stop, mask_C, stride_xt, stride_at, HAS_ADD)
    n2 = _read(x_C, add_C, t + 2, stop, mask_C, stride_xt, stride_at, HAS_ADD)
    n3 = _read(x_C, add_C, t + 3, stop, mask_C, stride_xt, stride_at, HAS_ADD)
    return n0, n1, n2, n3


@triton.jit
def _read_before(
    x_C,
    add_C,
    window_C,
    t,
    stop,
    mask_C,
    num_channels,
    stride_xt,
    stride_at,
    HAS_ADD: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    W: tl.constexpr,
):
    """The same at a token that may lie before zero, in the window."""
    value = _read(x_C, add_C, t, stop, mask_C, stride_xt, stride_at, HAS_ADD)
    if HAS_WINDOW:
        at = window_C + (t + W - 1) * num_channels
        value += tl.load(at, mask=_within(t, 1 - W, 0, mask_C), other=0.0).to(tl.float32)
    return value


@triton.jit
def _read_taps(weight, bias, c, mask_C, W: tl.constexpr):
    """What multiplies the inputs of now and of one, two, three tokens ago; the bias."""
    bias_C = tl.load(bias + c, mask=mask_C, other=0.0).to(tl.float32)
    w = weight + c * W + (W - 1)
    w0 = tl.load(w, mask=mask_C, other=0.0).to(tl.float32)
    w1, w2, w3 = tl.zeros_like(w0), tl.zeros_like(w0), tl.zeros_like(w0)
    if W > 1:
        w1 = tl.load(w - 1, mask=mask_C, other=0.0).to(tl.float32)
    if W > 2:
        w2 = tl.load(w - 2, mask=mask_C, other=0.0).to(tl.float32)
    if W > 3:
        w3 = tl.load(w - 3, mask=mask_C, other=0.0).to(tl.float32)
    return w0, w1, w2, w3, bias_C


@triton.jit
def _opens(starts_T, t, stop):
    """Whether a document opens at token t in [0, stop)."""
    return tl.load(starts_T + t, mask=(t >= 0) & (t < stop), other=0) != 0


@triton.jit
def _four_open(starts_T, t, stop):
    o0, o1 = _opens(starts_T, t, stop), _opens(starts_T, t + 1, stop)
    o2, o3 = _opens(starts_T, t + 2, stop), _opens(starts_T, t + 3, stop)
    return o0, o1, o2, o3


@triton.jit
def forward(
    x,
    add,
    weight,
    bias,
    window,
    valid,
    starts,
    y,
    next_window,
    num_tokens,
    num_channels,
    stride_xb,
    stride_xt,
    stride_ab,
    stride_at,
    HAS_ADD: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    W: tl.constexpr,
    TOKENS: tl.constexpr,
    C: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """y_t = SiLU(bias + Σ_j w_j (x + add)_{t − j}), and the next window."""
    row, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * TOKENS
    stop = min(first + TOKENS, num_tokens)
    c = tl.program_id(2) * C + tl.arange(0, C)
    mask_C = c < num_channels
    xt, at = stride_xt * ALIGN, stride_at * ALIGN
    x_C, add_C = x + row * (stride_xb * ALIGN) + c, add + row * (stride_ab * ALIGN) + c
    window_C = window + row * (W - 1) * num_channels + c
    y_C = y + row * num_tokens * num_channels + c
    w0, w1, w2, w3, bias_C = _read_taps(weight, bias, c, mask_C, W)
    p1 = _read_before(
        x_C, add_C, window_C, first - 1, stop, mask_C, num_channels, xt, at, HAS_ADD, HAS_WINDOW, W
    )
    p2 = _read_before(
        x_C, add_C, window_C, first - 2, stop, mask_C, num_channels, xt, at, HAS_ADD, HAS_WINDOW, W
    )
    p3 = _read_before(
        x_C, add_C, window_C, first - 3, stop, mask_C, num_channels, xt, at, HAS_ADD, HAS_WINDOW, W
    )
    if HAS_STARTS:
        starts += row * num_tokens
        o1, o2 = _opens(starts, first - 1, num_tokens), _opens(starts, first - 2, num_tokens)
        p2, p3 = tl.where(o1, 0.0, p2), tl.where(o1 | o2, 0.0, p3)
    for done in range(0, stop - first, 4):
        start = first + done
        n = _read_four(x_C, add_C, start, stop, mask_C, xt, at, HAS_ADD)
        if HAS_STARTS:
            opens = _four_open(starts, start, stop)
        for i in tl.static_range(4):
            if HAS_STARTS:
                p1, p2 = tl.where(opens[i], 0.0, p1), tl.where(opens[i], 0.0, p2)
                p3 = tl.where(opens[i], 0.0, p3)
            total = bias_C + w0 * n[i] + w1 * p1 + w2 * p2 + w3 * p3
            value = (total * tl.sigmoid(total)).to(y.dtype.element_ty)
            tl.store(
                y_C + (start + i) * num_channels,
                value,
                mask=_within(start + i, first, stop, mask_C),
            )
            p1, p2, p3 = n[i], p1, p2
    if tl.program_id(1) == 0:
        limit = num_tokens
        if HAS_VALID:
            limit = tl.load(valid + row).to(tl.int32)
        for slot in tl.static_range(W - 1):
            t = limit - (W - 1) + slot
            seen = _read_before(
                x_C, add_C, window_C, t, limit, mask_C, num_channels, xt, at, HAS_ADD, HAS_WINDOW, W
            )
            if HAS_STARTS:
                for later in tl.static_range(slot + 1, W - 1):
                    opens = _opens(starts, limit - (W - 1) + later, limit)
                    seen = tl.where(opens, 0.0, seen)
            tl.store(next_window + (row * (W - 1) + slot) * num_channels + c, seen, mask=mask_C)


@triton.jit
def _read_cotangent(dy_C, dtail_C, t, stop, c, num_channels, num_dy, stride_dyt):
    """The first channels come in one tensor, the others in another."""
    mask_C = _within(t, 0, stop, c < num_dy)
    dy = tl.load(dy_C + t * stride_dyt, mask=mask_C, other=0.0).to(tl.float32)
    mask_C = _within(t, 0, stop, (c >= num_dy) & (c < num_channels))
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
    w0, w1, w2, w3, bias_C = _read_taps(weight, bias, c, mask_C, W)
    p1 = _read_before(
        x_C, add_C, window_C, first - 1, stop, mask_C, num_channels, xt, at, HAS_ADD, HAS_WINDOW, W
    )
    p2 = _read_before(
        x_C, add_C, window_C, first - 2, stop, mask_C, num_channels, xt, at, HAS_ADD, HAS_WINDOW, W
    )
    p3 = _read_before(
        x_C, add_C, window_C, first - 3, stop, mask_C, num_channels, xt, at, HAS_ADD, HAS_WINDOW, W
    )
    if HAS_STARTS:
        starts += row * num_tokens
        o1, o2 = _opens(starts, first - 1, num_tokens), _opens(starts, first - 2, num_tokens)
        p2, p3 = tl.where(o1, 0.0, p2), tl.where(o1 | o2, 0.0, p3)
    q1 = tl.zeros((C,), dtype=tl.float32)
    q2, q3, dw0, dw1, dw2, dw3, dbias = q1, q1, q1, q1, q1, q1, q1
    # The last group lies behind the tile, or its last tokens do.
    for done in range(0, stop - first + 3, 4):
        start = first + done
        n = _read_four(x_C, add_C, start, num_tokens, mask_C, xt, at, HAS_ADD)
        dy_4 = _read_four_cotangents(dy_C, dtail_C, start, num_tokens, c, num_channels, num_dy, dyt)
        mine = (start < stop).to(tl.float32)
        if HAS_STARTS:
            opens = _four_open(starts, start, num_tokens)
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
                kept_C = _within(slot, 0, W - 1, mask_C)
                if HAS_STARTS:
                    parted = (o2 & (t + 1 < limit)) | (o1 & (t + 2 < limit))
                    kept_C = tl.where(parted, False, kept_C)
                value += tl.load(dnext_C + slot * num_channels, mask=kept_C, other=0.0)
            inside_C = _within(t, first, stop, mask_C)
            tl.store(dx_C + t * dxt, value.to(dx.dtype.element_ty), mask=inside_C)
            if HAS_WINDOW:
                before_C = _within(t, 1 - W, 0, mask_C)
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
