"""The Triton kernels of the selective scan: a walk over tokens, and the gradients of a chunk.

A thread has a channel with all its N numbers, so that sums over N stay in registers; N and C are
padded to powers of two. The states between chunks lie as (N, I), which threads side by side read
side by side, all others as (I, N). Exponents are dt · a ≤ 0. Read `selective_triton.py` first.
"""

import triton
import triton.language as tl

# Told nothing of their alignment, the compiler gives each lane channels of a tile, and none a part
# of N: sums over N then need no other lane.
_PLAIN = ["x", "dt", "a", "b", "c", "skip", "dy", "first", "starts", "ends", "totals"]
_PLAIN += ["states", "dstates", "y", "dx", "ddt", "dbc", "sums"]


@triton.jit
def _decay(dt, a):
    """exp(dt a), by the power of two that a GPU has an instruction for."""
    return tl.exp2(dt * (a * 1.4426950408889634))


@triton.jit
def _at(t, num_tokens, i_1C, num_channels):
    """Whether token and channel are there."""
    return i_1C < tl.where(t < num_tokens, num_channels, 0)


@triton.jit
def _rows(
    x_1C, t, stride_t, num_tokens, i_1C, num_channels, STEP: tl.constexpr, ROWS: tl.constexpr
):
    """Some tokens from t on, or from t back, as float32; zero outside."""
    rows = ()
    for j in tl.static_range(ROWS):
        there = t + j * STEP
        mask_1C = _at(there, num_tokens, i_1C, num_channels)
        row_1C = tl.load(x_1C + there * stride_t, mask=mask_1C, other=0.0)
        rows += (row_1C.to(tl.float32),)  # type: ignore[assignment]
    return rows


@triton.jit
def _token(h_NC, a_NC, dt_1C, x_1C, b_N, REVERSE: tl.constexpr):
    """The state behind one token, or the cotangent of the state before it."""
    decay_NC = _decay(dt_1C, a_NC)
    if REVERSE:
        return (h_NC + b_N[:, None] * x_1C) * decay_NC
    return h_NC * decay_NC + b_N[:, None] * (dt_1C * x_1C)


@triton.jit(do_not_specialize_on_alignment=_PLAIN)
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
    stride_xt,
    num_tokens,
    num_channels,
    segment,
    num_chunks,
    num_n: tl.constexpr,
    REVERSE: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
):
    """Walk over one segment of the tokens of C channels, from `starts` or from zeros.

    Leaves the state and the sum of the steps at its end, the states between chunks if asked, and
    the outputs if asked. REVERSE walks back with cotangents: x is dy then, and b is c.
    """
    k, row = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    i_1C, n_N = tl.program_id(0) * C + tl.arange(0, C)[None, :], tl.arange(0, N)
    mask_1C = i_1C < num_channels
    own_at, state_at = i_1C * num_n + n_N[:, None], n_N[:, None] * num_channels + i_1C
    state_mask = (n_N < num_n)[:, None] & mask_1C
    size = num_n * num_channels
    a_NC = tl.load(a + own_at, mask=state_mask, other=0.0)
    here = row * tl.num_programs(1) + k
    h_NC = tl.zeros((N, C), dtype=tl.float32)
    if starts is not None:
        h_NC = tl.load(starts + here * size + own_at, mask=state_mask, other=0.0)
    x_1C, dt_1C = x + row * stride_xb + i_1C, dt + row * num_tokens * num_channels + i_1C
    b_N, c_N = b + row * num_tokens * num_n + n_N, c + row * num_tokens * num_n + n_N
    total_1C = tl.zeros((1, C), dtype=tl.float32)
    if y is not None:
        y_1C = y + row * num_tokens * num_channels + i_1C
        skip_1C = tl.load(skip + i_1C, mask=mask_1C, other=0.0)
    STEP: tl.constexpr = -1 if REVERSE else 1
    ROUND: tl.constexpr = GROUP if states is None else CHUNK
    stop = min(segment, tl.cdiv(num_tokens - k * segment, ROUND) * ROUND)
    t = k * segment + (stop - 1 if REVERSE else 0)
    dts = _rows(dt_1C, t, num_channels, num_tokens, i_1C, num_channels, STEP, GROUP)
    xs = _rows(x_1C, t, stride_xt, num_tokens, i_1C, num_channels, STEP, GROUP)
    for done in range(0, stop, GROUP):
        if states is not None and done % CHUNK == 0:
            at = (row * num_chunks + t // CHUNK) * size + state_at
            tl.store(states + at, h_NC.to(states.dtype.element_ty), mask=state_mask)
        # Read what comes next while this is computed; none comes behind the segment, so that a
        # token is named there that is none, nor are those before it.
        ahead = tl.where(done + GROUP < stop, t + GROUP * STEP, num_tokens + GROUP)
        next_dts = _rows(dt_1C, ahead, num_channels, num_tokens, i_1C, num_channels, STEP, GROUP)
        next_xs = _rows(x_1C, ahead, stride_xt, num_tokens, i_1C, num_channels, STEP, GROUP)
        for j in tl.static_range(GROUP):
            # Behind the last token dt and x are zero, whatever b and c are.
            known = tl.minimum(t, num_tokens - 1) * num_n
            in_N = tl.load(b_N + known, mask=n_N < num_n, other=0.0)
            h_NC = _token(h_NC, a_NC, dts[j], xs[j], in_N, REVERSE)
            total_1C += dts[j]
            if y is not None:
                out_N = tl.load(c_N + known, mask=n_N < num_n, other=0.0)
                y_of_1C = tl.sum(h_NC * out_N[:, None], 0, keep_dims=True) + skip_1C * xs[j]
                kept_1C = _at(t, num_tokens, i_1C, num_channels)
                tl.store(y_1C + t * num_channels, y_of_1C.to(y.dtype.element_ty), mask=kept_1C)
            t += STEP
        dts, xs = next_dts, next_xs
    tl.store(ends + here * size + own_at, h_NC, mask=state_mask)
    tl.store(totals + here * num_channels + i_1C, total_1C, mask=mask_1C)


@triton.jit(do_not_specialize_on_alignment=_PLAIN)
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
    """Turn the ends of segments walked from zeros into the state before every segment."""
    row = tl.program_id(1).to(tl.int64)
    i_1C, n_N = tl.program_id(0) * C + tl.arange(0, C)[None, :], tl.arange(0, N)
    mask_1C = i_1C < num_channels
    at = i_1C * num_n + n_N[:, None]
    mask = (n_N < num_n)[:, None] & mask_1C
    size = num_n * num_channels
    a_NC = tl.load(a + at, mask=mask, other=0.0)
    h_NC = tl.zeros((N, C), dtype=tl.float32)
    if first is not None:
        h_NC = tl.load(first + row * size + at, mask=mask, other=0.0)
    for done in range(num_segments):
        k = row * num_segments + (num_segments - 1 - done if REVERSE else done)
        tl.store(starts + k * size + at, h_NC, mask=mask)
        total_1C = tl.load(totals + k * num_channels + i_1C, mask=mask_1C, other=0.0)
        end_NC = tl.load(ends + k * size + at, mask=mask, other=0.0)
        h_NC = h_NC * _decay(total_1C, a_NC) + end_NC


@triton.jit
def _zeros(C: tl.constexpr, ROWS: tl.constexpr):
    rows = ()
    for _ in tl.static_range(ROWS):
        rows += (tl.zeros((1, C), dtype=tl.float32),)  # type: ignore[assignment]
    return rows


@triton.jit
def _reversed(rows):
    back = ()
    for j in tl.static_range(len(rows) - 1, -1, -1):
        back += (rows[j],)
    return back


@triton.jit
def _number(dts, xs, dys, ddts, alongs, a_1C, h_1C, g_1C, b_n, c_n, db_n, t, stop, stride_bt, db_c):
    """The gradients that one of the N numbers of a chunk's states makes.

    h is the state before the chunk, g the cotangent of the one behind; b_n, c_n and db_n point to
    that number of token zero. Adds to ddt, and to `alongs` what falls on b; returns da.
    """
    kept, states = (), ()
    for j in tl.static_range(len(dts)):
        there = t + j
        b = tl.load(b_n + there * stride_bt, mask=there < stop, other=0.0)
        kept += (h_1C * _decay(dts[j], a_1C),)
        h_1C = kept[j] + b * (dts[j] * xs[j])
        states += (h_1C,)
    new_ddts, new_alongs, da_1C = (), (), tl.zeros_like(a_1C)
    for j in tl.static_range(len(dts) - 1, -1, -1):
        there = t + j
        b = tl.load(b_n + there * stride_bt, mask=there < stop, other=0.0)
        c = tl.load(c_n + there * stride_bt, mask=there < stop, other=0.0)
        g_1C += c * dys[j]
        worth_1C = g_1C * kept[j]
        da_1C += worth_1C * dts[j]
        new_ddts += (ddts[j] + worth_1C * a_1C,)
        new_alongs += (alongs[j] + g_1C * b,)
        tl.store(db_n + there, tl.sum(g_1C * (dts[j] * xs[j])), mask=there < stop)
        tl.store(db_n + db_c + there, tl.sum(states[j] * dys[j]), mask=there < stop)
        g_1C *= _decay(dts[j], a_1C)
    return _reversed(new_ddts), _reversed(new_alongs), da_1C


@triton.jit(do_not_specialize_on_alignment=_PLAIN)
def chunk_backward(
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
    stride_xt,
    num_tokens,
    num_channels,
    num_n,
    num_chunks,
    chunks_per_program,
    CHUNK: tl.constexpr,
    C: tl.constexpr,
):
    """The gradients of some chunks of C channels, from the states before and behind each.

    One of the N numbers after the other, all tokens of a chunk at once. `dbc` takes the sums over
    the C channels alone, `sums` those over the chunks: of a as (N, I), then of skip.
    """
    row = tl.program_id(2).to(tl.int64)
    i_1C = tl.program_id(0) * C + tl.arange(0, C)[None, :]
    mask_1C = i_1C < num_channels
    size = num_n * num_channels
    plain_1C = row * num_tokens * num_channels + i_1C
    x, dt, dy, dx, ddt = (
        x + row * stride_xb + i_1C,
        dt + plain_1C,
        dy + plain_1C,
        dx + plain_1C,
        ddt + plain_1C,
    )
    b, c = b + row * num_tokens * num_n, c + row * num_tokens * num_n
    sums += (row * tl.num_programs(1) + tl.program_id(1)) * (num_n + 1) * num_channels + i_1C
    db = dbc + (tl.program_id(0) * tl.num_programs(2) + row) * 2 * num_n * num_tokens
    skip_1C = tl.load(skip + i_1C, mask=mask_1C, other=0.0)
    dskip_1C = tl.zeros((1, C), dtype=tl.float32)
    begin = tl.program_id(1).to(tl.int64) * chunks_per_program
    for chunk in range(begin, min(begin + chunks_per_program, num_chunks)):
        t = chunk * CHUNK
        xs = _rows(x, t, stride_xt, num_tokens, i_1C, num_channels, 1, CHUNK)
        dts = _rows(dt, t, num_channels, num_tokens, i_1C, num_channels, 1, CHUNK)
        dys = _rows(dy, t, num_channels, num_tokens, i_1C, num_channels, 1, CHUNK)
        ddts, alongs = _zeros(C, CHUNK), _zeros(C, CHUNK)
        before = (row * num_chunks + chunk) * size + i_1C
        for n in range(num_n):
            of_n = n * num_channels
            a_1C = tl.load(a + i_1C * num_n + n, mask=mask_1C, other=0.0)
            h_1C = tl.load(states + before + of_n, mask=mask_1C, other=0.0).to(tl.float32)
            g_1C = tl.load(dstates + before + of_n, mask=mask_1C, other=0.0).to(tl.float32)
            ddts, alongs, da_1C = _number(
                dts,
                xs,
                dys,
                ddts,
                alongs,
                a_1C,
                h_1C,
                g_1C,
                b + n,
                c + n,
                db + n * num_tokens,
                t,
                num_tokens,
                num_n,
                num_n * num_tokens,
            )
            later_1C = _at(begin, chunk, i_1C, num_channels)
            da_1C += tl.load(sums + of_n, mask=later_1C, other=0.0)
            tl.store(sums + of_n, da_1C, mask=mask_1C)
        for j in tl.static_range(CHUNK):
            there_1C = _at(t + j, num_tokens, i_1C, num_channels)
            at = (t + j) * num_channels
            dx_1C = dts[j] * alongs[j] + skip_1C * dys[j]
            tl.store(dx + at, dx_1C.to(dx.dtype.element_ty), mask=there_1C)
            tl.store(ddt + at, ddts[j] + xs[j] * alongs[j], mask=there_1C)
            dskip_1C += dys[j] * xs[j]
    tl.store(sums + size, dskip_1C, mask=mask_1C)
