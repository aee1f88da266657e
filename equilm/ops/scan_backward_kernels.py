"""The Triton kernels of the scan's backward pass; shapes and names as in `scan_kernels.py`.

With y_t = Σ_s decay_ts (c_t · b_s) dt_s x_s + from_start_t S c_t + skip x_t, a chunk needs the
state S before it and the cotangent of the state behind it. Read `scan_triton.py` first.
"""

import triton
import triton.language as tl

from equilm.ops.scan_kernels import decays, dot, kept, kept_between, load_chunk, openings, seen


@triton.jit
def cotangent(
    dy,
    dt,
    a,
    c,
    starts,
    dlast,
    dfirst,
    dstates,
    stride_cb,
    stride_ct,
    num_tokens,
    num_heads,
    heads_per_group,
    num_p,
    num_n,
    HAS_FIRST: tl.constexpr,
    HAS_LAST: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Walk back over the chunks: dS ← exp(total) dS + Σ_t exp(log decay_t) dy_t ⊗ c_t."""
    row, head = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    p, n, offsets = tl.arange(0, P), tl.arange(0, N), tl.arange(0, L)
    n += tl.program_id(1) * N
    rate = tl.load(a + head).to(WIDE)
    num_chunks = tl.cdiv(num_tokens, L)
    row64 = row.to(tl.int64)
    dy += row64 * num_tokens * num_heads * num_p + head * num_p
    c += row64 * stride_cb + (head // heads_per_group) * num_n
    dt += row64 * num_tokens * num_heads + head
    if HAS_STARTS:
        starts += row64 * num_tokens
    state_at = p[:, None] * num_n + n[None, :]
    state_mask = (p < num_p)[:, None] & (n < num_n)[None, :]
    program = row64 * num_heads + head
    dstate = tl.zeros((P, N), dtype=tl.float32)
    if HAS_LAST:
        dstate = tl.load(dlast + program * num_p * num_n + state_at, mask=state_mask, other=0.0)
    for back in range(num_chunks):
        k = num_chunks - 1 - back
        t = k * L + offsets
        at = dstates + (program * num_chunks + k) * num_p * num_n + state_at
        tl.store(at, dstate.to(dstates.dtype.element_ty), mask=state_mask)
        dy_LP = load_chunk(dy, t, num_tokens, num_heads * num_p, p, num_p)
        c_LN = load_chunk(c, t, num_tokens, stride_ct, n, num_n)
        _, log_decay_L, total = decays(dt, t, num_tokens, num_heads, rate, WIDE)
        opened_L, newest = openings(starts, t, offsets, num_tokens, HAS_STARTS)
        from_start_L = kept(log_decay_L, opened_L < 0, HAS_STARTS)
        reached_LP = (dy_LP * from_start_L[:, None]).to(dy_LP.dtype)
        across = kept(total, newest < 0, HAS_STARTS)
        dstate = dstate * across + dot(tl.trans(reached_LP), c_LN, PRECISION)
    if HAS_FIRST:
        tl.store(dfirst + program * num_p * num_n + state_at, dstate, mask=state_mask)


@triton.jit
def head_backward(
    x,
    dt,
    a,
    b,
    c,
    skip,
    dy,
    states,
    dstates,
    starts,
    dx,
    ddt,
    dvectors,
    stride_xb,
    stride_xt,
    stride_bb,
    stride_bt,
    stride_cb,
    stride_ct,
    num_tokens,
    num_heads,
    heads_per_group,
    num_p,
    num_n,
    HAS_STARTS: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    PART: tl.constexpr,
):
    """One chunk of one head: what does not sum over heads."""
    num_chunks = tl.cdiv(num_tokens, L)
    head = tl.program_id(0) % num_heads
    row, k = tl.program_id(0) // num_heads // num_chunks, tl.program_id(0) // num_heads % num_chunks
    group = head // heads_per_group
    p, offsets = tl.arange(0, P), tl.arange(0, L)
    t = k * L + offsets
    row64 = row.to(tl.int64)
    rate = tl.load(a + head).to(WIDE)
    out_at = (row64 * num_tokens + t) * num_heads + head
    xp_at = out_at[:, None] * num_p + p[None, :]
    xp_mask = (t < num_tokens)[:, None] & (p < num_p)[None, :]
    dt_L, log_decay_L, total = decays(
        dt + row64 * num_tokens * num_heads + head, t, num_tokens, num_heads, rate, WIDE
    )
    if HAS_STARTS:
        starts += row64 * num_tokens
    opened_L, newest = openings(starts, t, offsets, num_tokens, HAS_STARTS)
    b += row64 * stride_bb + group * num_n
    c += row64 * stride_cb + group * num_n
    state_at = ((row64 * num_heads + head) * num_chunks + k) * num_p * num_n + p[:, None] * num_n
    x_LP = load_chunk(x + row64 * stride_xb + head * num_p, t, num_tokens, stride_xt, p, num_p)
    dy_LP = tl.load(dy + xp_at, mask=xp_mask, other=0.0)

    # Registers are what this kernel is short of: parts of N one after the other, and what is as
    # large as a chunk is reduced before the next is made. First a log decay's way to y by its row.
    scores_LL = tl.zeros((L, L), dtype=tl.float32)
    for start in range(0, N, PART):
        n = start + tl.arange(0, PART)
        b_LN = load_chunk(b, t, num_tokens, stride_bt, n, num_n)
        c_LN = load_chunk(c, t, num_tokens, stride_ct, n, num_n)
        scores_LL = tl.dot(c_LN, tl.trans(b_LN), acc=scores_LL, input_precision=PRECISION)
    scores_LL *= kept_between(log_decay_L, log_decay_L, offsets, opened_L, HAS_STARTS)
    narrow_LL = scores_LL.to(dy_LP.dtype)
    scores_LL *= dot(dy_LP, tl.trans(x_LP), PRECISION)
    dlog_L = tl.sum(scores_LL * dt_L[None, :], 1)

    kept_LP = tl.zeros((L, P), dtype=tl.float32)
    for start in range(0, N, PART):
        n = start + tl.arange(0, PART)
        state_mask = (p < num_p)[:, None] & (n < num_n)[None, :]
        dstate_PN = tl.load(dstates + state_at + n[None, :], mask=state_mask, other=0.0)
        b_LN = load_chunk(b, t, num_tokens, stride_bt, n, num_n)
        kept_LP = tl.dot(b_LN, tl.trans(dstate_PN), acc=kept_LP, input_precision=PRECISION)
    kept_LP *= kept(total - log_decay_L, offsets >= newest, HAS_STARTS)[:, None]
    dtotal = tl.sum(tl.sum(kept_LP * x_LP, 1) * dt_L, 0)
    dinput_LP = tl.dot(tl.trans(narrow_LL), dy_LP, acc=kept_LP, input_precision=PRECISION)
    dx_LP = dt_L[:, None] * dinput_LP + tl.load(skip + head) * dy_LP
    tl.store(dx + xp_at, dx_LP.to(dx.dtype.element_ty), mask=xp_mask)
    direct_L = tl.sum(dinput_LP * x_LP, 1)

    carried_LP = tl.zeros((L, P), dtype=tl.float32)
    products_P = tl.zeros((P,), dtype=tl.float32)
    for start in range(0, N, PART):
        n = start + tl.arange(0, PART)
        state_mask = (p < num_p)[:, None] & (n < num_n)[None, :]
        state_PN = tl.load(states + state_at + n[None, :], mask=state_mask, other=0.0)
        dstate_PN = tl.load(dstates + state_at + n[None, :], mask=state_mask, other=0.0)
        c_LN = load_chunk(c, t, num_tokens, stride_ct, n, num_n)
        carried_LP = tl.dot(c_LN, tl.trans(state_PN), acc=carried_LP, input_precision=PRECISION)
        products_P += tl.sum(state_PN.to(tl.float32) * dstate_PN.to(tl.float32), 1)
    dlog_L += tl.sum(carried_LP * dy_LP, 1) * kept(log_decay_L, opened_L < 0, HAS_STARTS)
    dtotal += kept(total, newest < 0, HAS_STARTS) * tl.sum(products_P, 0)

    # It reaches the inputs through their column, and all before a token through their sum.
    dlog_L -= dt_L * direct_L
    if HAS_STARTS:
        # A sum over another document is zero, and so is that from a start on, but for rounding.
        dlog_LL = tl.where(seen(offsets, opened_L, HAS_STARTS), dlog_L[:, None], 0.0)
        behind_L = tl.sum(dlog_LL, 0) + tl.where(offsets >= newest, dtotal, 0.0)
        behind_L = tl.where(offsets == opened_L, 0.0, behind_L)
    else:
        behind_L = tl.sum(dlog_L, 0) - tl.cumsum(dlog_L, 0) + dlog_L + dtotal
    tl.store(ddt + out_at, direct_L + rate.to(tl.float32) * behind_L, mask=t < num_tokens)
    # This chunk's parts of the gradients of the rate and of skip.
    part = dvectors + (row64 * num_chunks + k) * 2 * num_heads + head
    tl.store(part, tl.sum(behind_L * dt_L, 0))
    tl.store(part + num_heads, tl.sum(tl.sum(dy_LP.to(tl.float32) * x_LP, 1), 0))


@triton.jit
def group_backward(
    x,
    dt,
    a,
    b,
    c,
    dy,
    states,
    dstates,
    starts,
    dbc,
    stride_xb,
    stride_xt,
    stride_bb,
    stride_bt,
    stride_cb,
    stride_ct,
    num_rows,
    num_tokens,
    num_heads,
    num_groups,
    heads_per_program,
    num_p,
    num_n,
    HAS_STARTS: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One chunk and some heads of one group: what sums over heads."""
    num_chunks = tl.cdiv(num_tokens, L)
    row, k = tl.program_id(0) // num_chunks, tl.program_id(0) % num_chunks
    first_head = tl.program_id(1) * heads_per_program
    group = first_head // (num_heads // num_groups)
    p, n, offsets = tl.arange(0, P), tl.arange(0, N), tl.arange(0, L)
    t = k * L + offsets
    row64 = row.to(tl.int64)
    if HAS_STARTS:
        starts += row64 * num_tokens
    opened_L, newest = openings(starts, t, offsets, num_tokens, HAS_STARTS)
    dcb_LL = tl.zeros((L, L), dtype=tl.float32)
    db_LN = tl.zeros((L, N), dtype=tl.float32)
    dc_LN = tl.zeros((L, N), dtype=tl.float32)
    xp_mask = (t < num_tokens)[:, None] & (p < num_p)[None, :]
    state_mask = (p < num_p)[:, None] & (n < num_n)[None, :]
    for head in range(first_head, first_head + heads_per_program):
        rate = tl.load(a + head).to(WIDE)
        x_LP = load_chunk(x + row64 * stride_xb + head * num_p, t, num_tokens, stride_xt, p, num_p)
        xp_at = ((row64 * num_tokens + t) * num_heads + head)[:, None] * num_p + p[None, :]
        dy_LP = tl.load(dy + xp_at, mask=xp_mask, other=0.0)
        dt_L, log_decay_L, total = decays(
            dt + row64 * num_tokens * num_heads + head, t, num_tokens, num_heads, rate, WIDE
        )
        state_at = p[:, None] * num_n + n[None, :]
        state_at += ((row64 * num_heads + head) * num_chunks + k) * num_p * num_n
        state_PN = tl.load(states + state_at, mask=state_mask, other=0.0)
        dstate_PN = tl.load(dstates + state_at, mask=state_mask, other=0.0)
        decay_LL = kept_between(log_decay_L, log_decay_L, offsets, opened_L, HAS_STARTS)
        dcb_LL += dot(dy_LP, tl.trans(x_LP), PRECISION) * dt_L[None, :] * decay_LL
        from_start_L = kept(log_decay_L, opened_L < 0, HAS_STARTS)
        reached_LP = (dy_LP * from_start_L[:, None]).to(dy_LP.dtype)
        dc_LN = tl.dot(reached_LP, state_PN, acc=dc_LN, input_precision=PRECISION)
        weight_L = dt_L * kept(total - log_decay_L, offsets >= newest, HAS_STARTS)
        added_LP = (x_LP * weight_L[:, None]).to(x_LP.dtype)
        db_LN = tl.dot(added_LP, dstate_PN, acc=db_LN, input_precision=PRECISION)
    b_LN = load_chunk(b + row64 * stride_bb + group * num_n, t, num_tokens, stride_bt, n, num_n)
    c_LN = load_chunk(c + row64 * stride_cb + group * num_n, t, num_tokens, stride_ct, n, num_n)
    db_LN += dot(tl.trans(dcb_LL.to(c_LN.dtype)), c_LN, PRECISION)
    dc_LN += dot(dcb_LL.to(b_LN.dtype), b_LN, PRECISION)
    # Of the parts of a group's heads each has a tensor of its own; in it b and c lie side by side.
    part = first_head % (num_heads // num_groups) // heads_per_program
    out_at = (((part.to(tl.int64) * num_rows + row) * num_tokens + t) * 2)[:, None] * num_groups
    out_at = (out_at + group) * num_n + n[None, :]
    out_mask = (t < num_tokens)[:, None] & (n < num_n)[None, :]
    tl.store(dbc + out_at, db_LN, mask=out_mask)
    tl.store(dbc + out_at + num_groups * num_n, dc_LN, mask=out_mask)
