"""The Triton kernels of the selective scan: a walk over tokens, and the sums of its segments.

A tile is (C, N), channels by the numbers of their states; lanes lie along both, so that sums over
either take few exchanges between them. N and C are padded to powers of two. Tokens are read some
ahead, since what is read of b and c waits for no other warp. Exponents are dt · a ≤ 0.
Read `selective_triton.py` first, and `selective_backward_kernels.py` next.
"""

import triton
import triton.language as tl


@triton.jit
def is_there(t, num_tokens, i_C, count):
    """Whether a token is there, and places of it below a count."""
    return i_C < tl.where(t < num_tokens, count, 0)


@triton.jit
def read_channels(
    x_C,
    t,
    num_tokens,
    i_C,
    num_channels,
    STRIDE: tl.constexpr,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Channels of some tokens from t on, or from t back, as float32; zero outside.

    WHOLE promises that all of them are there.
    """
    rows, x_C = (), x_C + t * STRIDE
    for j in tl.static_range(ROWS):
        if WHOLE:
            row_C = tl.load(x_C + j * STEP * STRIDE)
        else:
            there_C = is_there(t + j * STEP, num_tokens, i_C, num_channels)
            row_C = tl.load(x_C + j * STEP * STRIDE, mask=there_C, other=0.0)
        rows += (row_C.to(tl.float32),)  # type: ignore[assignment]
    return rows


@triton.jit
def read_directions(
    b_N,
    t,
    num_tokens,
    n_N,
    num_n: tl.constexpr,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Directions of some tokens from t on, or from t back; zero outside."""
    rows, b_N = (), b_N + t * num_n
    for j in tl.static_range(ROWS):
        if WHOLE:
            row_N = tl.load(b_N + j * STEP * num_n)
        else:
            there_N = is_there(t + j * STEP, num_tokens, n_N, num_n)
            row_N = tl.load(b_N + j * STEP * num_n, mask=there_N, other=0.0)
        rows += (row_N,)  # type: ignore[assignment]
    return rows


@triton.jit
def walk(
    x,
    dt,
    a,
    b,
    c,
    skip,
    starts,
    ends,
    totals,
    states,
    y,
    stride_xb,
    num_tokens,
    segment,
    num_chunks,
    stride_xt: tl.constexpr,
    num_channels: tl.constexpr,
    num_n: tl.constexpr,
    REVERSE: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Walk over one segment of the tokens of C channels, from `starts` or from zeros.

    Leaves the state at its end; if asked the sum of the steps, the state before each chunk, and
    the outputs. REVERSE walks back with cotangents: x is dy then, and b is c.
    """
    k, row = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    i_C, n_N = tl.program_id(0) * C + tl.arange(0, C), tl.arange(0, N)
    mask_C, mask_N = i_C < num_channels, n_N < num_n
    at_CN, mask_CN = i_C[:, None] * num_n + n_N[None, :], mask_C[:, None] & mask_N[None, :]
    size = num_n * num_channels
    here = row * tl.num_programs(1) + k
    a_CN = 1.4426950408889634 * tl.load(a + at_CN, mask=mask_CN, other=0.0)
    h_CN = tl.zeros((C, N), dtype=tl.float32)
    if starts is not None:
        h_CN = tl.load(starts + here * size + at_CN, mask=mask_CN, other=0.0)
    x_C, dt_C = x + row * stride_xb + i_C, dt + row * num_tokens * num_channels + i_C
    b_N, c_N = b + row * num_tokens * num_n + n_N, c + row * num_tokens * num_n + n_N
    total_C = tl.zeros((C,), dtype=tl.float32)
    if y is not None:
        y_C = y + row * num_tokens * num_channels + i_C
        skip_C = tl.load(skip + i_C, mask=mask_C, other=0.0)
    STEP: tl.constexpr = -1 if REVERSE else 1
    stop = min(segment, tl.cdiv(num_tokens - k * segment, GROUP) * GROUP)
    t = k * segment + (stop - 1 if REVERSE else 0)
    dts = read_channels(dt_C, t, num_tokens, i_C, num_channels, num_channels, STEP, GROUP, WHOLE)
    xs = read_channels(x_C, t, num_tokens, i_C, num_channels, stride_xt, STEP, GROUP, WHOLE)
    bs = read_directions(b_N, t, num_tokens, n_N, num_n, STEP, GROUP, WHOLE)
    if y is not None:
        cs = read_directions(c_N, t, num_tokens, n_N, num_n, STEP, GROUP, WHOLE)
    for done in range(0, stop, GROUP):
        # Read what comes next while this is computed; the last time, the same once more.
        ahead = tl.where(done + GROUP < stop, t + GROUP * STEP, t)
        next_dts = read_channels(
            dt_C, ahead, num_tokens, i_C, num_channels, num_channels, STEP, GROUP, WHOLE
        )
        next_xs = read_channels(
            x_C, ahead, num_tokens, i_C, num_channels, stride_xt, STEP, GROUP, WHOLE
        )
        next_bs = read_directions(b_N, ahead, num_tokens, n_N, num_n, STEP, GROUP, WHOLE)
        if y is not None:
            next_cs = read_directions(c_N, ahead, num_tokens, n_N, num_n, STEP, GROUP, WHOLE)
        for j in tl.static_range(GROUP):
            if states is not None and j % CHUNK == 0:
                at = (row * num_chunks + (t + j) // CHUNK) * size + at_CN
                at = tl.max_contiguous(states + at, [1, 4])
                kept_C = mask_C if WHOLE else is_there(t + j, num_tokens, i_C, num_channels)
                kept_CN = kept_C[:, None] & mask_N[None, :]
                tl.store(at, h_CN.to(states.dtype.element_ty), mask=kept_CN)
            decay_CN = tl.exp2(dts[j][:, None] * a_CN)
            if REVERSE:
                h_CN = (h_CN + bs[j][None, :] * xs[j][:, None]) * decay_CN
            else:
                h_CN = h_CN * decay_CN + bs[j][None, :] * (dts[j] * xs[j])[:, None]
            if totals is not None:
                total_C += dts[j]
            if y is not None:
                y_of_C = tl.sum(h_CN * cs[j][None, :], 1) + skip_C * xs[j]
                kept_C = mask_C if WHOLE else is_there(t + j * STEP, num_tokens, i_C, num_channels)
                at_t = t * num_channels + j * STEP * num_channels
                tl.store(y_C + at_t, y_of_C.to(y.dtype.element_ty), mask=kept_C)
        t += GROUP * STEP
        dts, xs, bs = next_dts, next_xs, next_bs
        if y is not None:
            cs = next_cs
    tl.store(ends + here * size + at_CN, h_CN, mask=mask_CN)
    if totals is not None:
        tl.store(totals + here * num_channels + i_C, total_C, mask=mask_C)


@triton.jit
def carry(
    ends,
    totals,
    a,
    first,
    starts,
    num_segments,
    num_channels,
    num_n: tl.constexpr,
    REVERSE: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
):
    """Turn the ends of segments walked from zeros into the states before each."""
    row = tl.program_id(1).to(tl.int64)
    i_C, n_N = tl.program_id(0) * C + tl.arange(0, C), tl.arange(0, N)
    mask_C = i_C < num_channels
    at_CN, mask_CN = i_C[:, None] * num_n + n_N[None, :], mask_C[:, None] & (n_N < num_n)[None, :]
    size = num_n * num_channels
    a_CN = 1.4426950408889634 * tl.load(a + at_CN, mask=mask_CN, other=0.0)
    h_CN = tl.zeros((C, N), dtype=tl.float32)
    if first is not None:
        h_CN = tl.load(first + row * size + at_CN, mask=mask_CN, other=0.0)
    for done in range(num_segments):
        k = row * num_segments + (num_segments - 1 - done if REVERSE else done)
        total_C = tl.load(totals + k * num_channels + i_C, mask=mask_C, other=0.0)
        end_CN = tl.load(ends + k * size + at_CN, mask=mask_CN, other=0.0)
        tl.store(starts + k * size + at_CN, h_CN, mask=mask_CN)
        h_CN = h_CN * tl.exp2(total_C[:, None] * a_CN) + end_CN
