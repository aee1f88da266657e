"""The Triton kernels of the selective scan: a walk over tokens, and the gradients of a span.

A tile is (C, N), channels by the numbers of their states; lanes lie along both, so that sums over
either take few exchanges between them. N and C are padded to powers of two. Tokens are read some
ahead, since what is read of b and c waits for no other warp. Exponents are dt · a ≤ 0.
Read `selective_triton.py` first.
"""

import triton
import triton.language as tl


@triton.jit
def _at(t, num_tokens, i_C, count):
    """Whether a token is there, and places of it below a count."""
    return i_C < tl.where(t < num_tokens, count, 0)


@triton.jit
def _rows(
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
            there_C = _at(t + j * STEP, num_tokens, i_C, num_channels)
            row_C = tl.load(x_C + j * STEP * STRIDE, mask=there_C, other=0.0)
        rows += (row_C.to(tl.float32),)  # type: ignore[assignment]
    return rows


@triton.jit
def _directions(
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
            there_N = _at(t + j * STEP, num_tokens, n_N, num_n)
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
    dts = _rows(dt_C, t, num_tokens, i_C, num_channels, num_channels, STEP, GROUP, WHOLE)
    xs = _rows(x_C, t, num_tokens, i_C, num_channels, stride_xt, STEP, GROUP, WHOLE)
    bs = _directions(b_N, t, num_tokens, n_N, num_n, STEP, GROUP, WHOLE)
    if y is not None:
        cs = _directions(c_N, t, num_tokens, n_N, num_n, STEP, GROUP, WHOLE)
    for done in range(0, stop, GROUP):
        # Read what comes next while this is computed; the last time, the same once more.
        ahead = tl.where(done + GROUP < stop, t + GROUP * STEP, t)
        next_dts = _rows(
            dt_C, ahead, num_tokens, i_C, num_channels, num_channels, STEP, GROUP, WHOLE
        )
        next_xs = _rows(x_C, ahead, num_tokens, i_C, num_channels, stride_xt, STEP, GROUP, WHOLE)
        next_bs = _directions(b_N, ahead, num_tokens, n_N, num_n, STEP, GROUP, WHOLE)
        if y is not None:
            next_cs = _directions(c_N, ahead, num_tokens, n_N, num_n, STEP, GROUP, WHOLE)
        for j in tl.static_range(GROUP):
            if states is not None and j % CHUNK == 0:
                at = (row * num_chunks + (t + j) // CHUNK) * size + at_CN
                at = tl.max_contiguous(states + at, [1, 4])
                kept_C = mask_C if WHOLE else _at(t + j, num_tokens, i_C, num_channels)
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
                kept_C = mask_C if WHOLE else _at(t + j * STEP, num_tokens, i_C, num_channels)
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
    last,
    num_segments,
    num_channels,
    num_n: tl.constexpr,
    REVERSE: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
):
    """Turn the ends of segments walked from zeros into the states before and behind all."""
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
    tl.store(last + row * size + at_CN, h_CN, mask=mask_CN)


@triton.jit
def span_backward(
    x,
    dt,
    a,
    b,
    c,
    skip,
    dy,
    states,
    dstates,
    dx,
    ddt,
    dbc,
    sums,
    stride_xb,
    num_tokens,
    span,
    num_chunks,
    stride_xt: tl.constexpr,
    num_channels: tl.constexpr,
    num_n: tl.constexpr,
    CHUNK: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """The gradients of a span of tokens of C channels, the last chunk of it first.

    `states` has the state before each chunk, `dstates` the cotangent of that behind each span.
    `dbc` takes the sums over the C channels alone, `sums` those over the span: of a, then of skip.
    """
    k, row = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    i_C, n_N = tl.program_id(0) * C + tl.arange(0, C), tl.arange(0, N)
    mask_C, mask_N = i_C < num_channels, n_N < num_n
    at_CN, mask_CN = i_C[:, None] * num_n + n_N[None, :], mask_C[:, None] & mask_N[None, :]
    size = num_n * num_channels
    here = row * tl.num_programs(1) + k
    a_CN = 1.4426950408889634 * tl.load(a + at_CN, mask=mask_CN, other=0.0)
    g_CN = tl.load(dstates + here * size + at_CN, mask=mask_CN, other=0.0)
    skip_C = tl.load(skip + i_C, mask=mask_C, other=0.0)
    plain_C = row * num_tokens * num_channels + i_C
    x_C = x + row * stride_xb + i_C
    dt_C, dy_C, dx_C, ddt_C = dt + plain_C, dy + plain_C, dx + plain_C, ddt + plain_C
    b_N, c_N = b + row * num_tokens * num_n + n_N, c + row * num_tokens * num_n + n_N
    dbc += (tl.program_id(0) * tl.num_programs(2) + row) * 2 * num_tokens * num_n
    l_L = tl.arange(0, CHUNK)
    da_CN, dskip_C = tl.zeros((C, N), dtype=tl.float32), tl.zeros((C,), dtype=tl.float32)
    first = k * span // CHUNK
    last = min(first + span // CHUNK, num_chunks) - 1
    for back in range(last - first + 1):
        chunk = last - back
        t = chunk * CHUNK
        dts = _rows(dt_C, t, num_tokens, i_C, num_channels, num_channels, 1, CHUNK, WHOLE)
        xs = _rows(x_C, t, num_tokens, i_C, num_channels, stride_xt, 1, CHUNK, WHOLE)
        dys = _rows(dy_C, t, num_tokens, i_C, num_channels, num_channels, 1, CHUNK, WHOLE)
        bs = _directions(b_N, t, num_tokens, n_N, num_n, 1, CHUNK, WHOLE)
        at = (row * num_chunks + chunk) * size + at_CN
        at = tl.max_contiguous(states + at, [1, 4])
        h_CN = tl.load(at, mask=mask_CN, other=0.0).to(tl.float32)
        decays, kept = (), ()
        db_LN = tl.zeros((CHUNK, N), dtype=tl.float32)
        dc_LN = tl.zeros((CHUNK, N), dtype=tl.float32)
        for j in tl.static_range(CHUNK):
            decays += (tl.exp2(dts[j][:, None] * a_CN),)  # type: ignore[assignment]
            kept += (h_CN * decays[j],)  # type: ignore[assignment]
            h_CN = kept[j] + bs[j][None, :] * (dts[j] * xs[j])[:, None]
            dc_N = tl.sum(h_CN * dys[j][:, None], 0)
            dc_LN = tl.where(l_L[:, None] == j, dc_N[None, :], dc_LN)
        cs = _directions(c_N, t, num_tokens, n_N, num_n, 1, CHUNK, WHOLE)
        for j in tl.static_range(CHUNK - 1, -1, -1):
            there_C = mask_C if WHOLE else _at(t + j, num_tokens, i_C, num_channels)
            at_t = t * num_channels + j * num_channels
            g_CN += cs[j][None, :] * dys[j][:, None]
            db_N = tl.sum(g_CN * (dts[j] * xs[j])[:, None], 0)
            db_LN = tl.where(l_L[:, None] == j, db_N[None, :], db_LN)
            worth_CN = g_CN * kept[j]
            da_CN += worth_CN * dts[j][:, None]
            along_C = tl.sum(g_CN * bs[j][None, :], 1)
            dx_of_C = dts[j] * along_C + skip_C * dys[j]
            tl.store(dx_C + at_t, dx_of_C.to(dx.dtype.element_ty), mask=there_C)
            ddt_of_C = 0.6931471805599453 * tl.sum(worth_CN * a_CN, 1) + xs[j] * along_C
            tl.store(ddt_C + at_t, ddt_of_C, mask=there_C)
            dskip_C += dys[j] * xs[j]
            g_CN *= decays[j]
        at_LN = (t + l_L)[:, None] * num_n + n_N[None, :]
        mask_LN = (t + l_L < num_tokens)[:, None] & mask_N[None, :]
        tl.store(dbc + at_LN, db_LN.to(dbc.dtype.element_ty), mask=mask_LN)
        at_LN += num_tokens * num_n
        tl.store(dbc + at_LN, dc_LN.to(dbc.dtype.element_ty), mask=mask_LN)
    sums += here * (num_n + 1) * num_channels
    tl.store(sums + at_CN, da_CN, mask=mask_CN)
    tl.store(sums + size + i_C, dskip_C, mask=mask_C)
