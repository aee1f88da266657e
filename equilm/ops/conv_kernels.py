"""The Triton kernels that `conv_triton.py` launches: a program walks over TOKENS of C channels.

Every input is read once, four tokens at a time, and the last three stay in registers; so there are
at most four taps, w0 for the newest input, and those that W lacks are zero. A token that opens a
document lets nothing through from one side of it to the other. Strides come in units of ALIGN
(`launch.py`). Read `conv_backward_kernels.py` next.
"""

import triton
import triton.language as tl


@triton.jit
def within(t, low, stop, mask_C):
    """mask_C where low ≤ t < stop; Triton's interpreter cannot widen a truth, so widen t."""
    t_C = t + tl.zeros_like(mask_C).to(tl.int32)
    return mask_C & (t_C >= low) & (t_C < stop)


@triton.jit
def _read(x_C, add_C, t, stop, mask_C, stride_xt, stride_at, HAS_ADD: tl.constexpr):
    """x (+ add) at token t in [0, stop), in float32; zero elsewhere."""
    mask_C = within(t, 0, stop, mask_C)
    value = tl.load(x_C + t * stride_xt, mask=mask_C, other=0.0).to(tl.float32)
    if HAS_ADD:
        value += tl.load(add_C + t * stride_at, mask=mask_C, other=0.0).to(tl.float32)
    return value


@triton.jit
def read_four(x_C, add_C, t, stop, mask_C, stride_xt, stride_at, HAS_ADD: tl.constexpr):
    n0 = _read(x_C, add_C, t, stop, mask_C, stride_xt, stride_at, HAS_ADD)
    n1 = _read(x_C, add_C, t + 1, stop, mask_C, stride_xt, stride_at, HAS_ADD)
    n2 = _read(x_C, add_C, t + 2, stop, mask_C, stride_xt, stride_at, HAS_ADD)
    n3 = _read(x_C, add_C, t + 3, stop, mask_C, stride_xt, stride_at, HAS_ADD)
    return n0, n1, n2, n3


@triton.jit
def read_before(
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
        value += tl.load(at, mask=within(t, 1 - W, 0, mask_C), other=0.0).to(tl.float32)
    return value


@triton.jit
def read_taps(weight, bias, c, mask_C, W: tl.constexpr):
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
def opens_at(starts_T, t, stop):
    """Whether a document opens at token t in [0, stop)."""
    return tl.load(starts_T + t, mask=(t >= 0) & (t < stop), other=0) != 0


@triton.jit
def four_open(starts_T, t, stop):
    o0, o1 = opens_at(starts_T, t, stop), opens_at(starts_T, t + 1, stop)
    o2, o3 = opens_at(starts_T, t + 2, stop), opens_at(starts_T, t + 3, stop)
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
    for done in range(0, stop - first, 4):
        start = first + done
        n = read_four(x_C, add_C, start, stop, mask_C, xt, at, HAS_ADD)
        if HAS_STARTS:
            opens = four_open(starts, start, stop)
        for i in tl.static_range(4):
            if HAS_STARTS:
                p1, p2 = tl.where(opens[i], 0.0, p1), tl.where(opens[i], 0.0, p2)
                p3 = tl.where(opens[i], 0.0, p3)
            total = bias_C + w0 * n[i] + w1 * p1 + w2 * p2 + w3 * p3
            value = (total * tl.sigmoid(total)).to(y.dtype.element_ty)
            tl.store(
                y_C + (start + i) * num_channels,
                value,
                mask=within(start + i, first, stop, mask_C),
            )
            p1, p2, p3 = n[i], p1, p2
    if tl.program_id(1) == 0:
        limit = num_tokens
        if HAS_VALID:
            limit = tl.load(valid + row).to(tl.int32)
        for slot in tl.static_range(W - 1):
            t = limit - (W - 1) + slot
            seen = read_before(
                x_C, add_C, window_C, t, limit, mask_C, num_channels, xt, at, HAS_ADD, HAS_WINDOW, W
            )
            if HAS_STARTS:
                for later in tl.static_range(slot + 1, W - 1):
                    opens = opens_at(starts, limit - (W - 1) + later, limit)
                    seen = tl.where(opens, 0.0, seen)
            tl.store(next_window + (row * (W - 1) + slot) * num_channels + c, seen, mask=mask_C)
