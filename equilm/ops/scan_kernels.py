"""The Triton kernels of the scan's forward pass, and what both passes share.

L is the tokens of a chunk; P and N are padded to powers of two. Log decays are summed in the type
WIDE, since their differences lose digits. A token that finds a state of zeros opens a document, and
nothing is kept from one document to another. Read `scan_triton.py` first.
"""

import triton
import triton.language as tl


@triton.jit
def load_chunk(base, t, num_tokens, stride_t, cols, num_cols):
    """A (L, cols) tile, zero outside."""
    mask = (t < num_tokens)[:, None] & (cols < num_cols)[None, :]
    return tl.load(base + t[:, None] * stride_t + cols[None, :], mask=mask, other=0.0)


@triton.jit
def dot(left, right, PRECISION: tl.constexpr):
    return tl.dot(left, right, input_precision=PRECISION)


@triton.jit
def decays(dt, t, num_tokens, stride, rate, WIDE: tl.constexpr):
    """dt (L,), its running sum times the rate, and the whole sum."""
    dt_L = tl.load(dt + t * stride, mask=t < num_tokens, other=0.0)
    return dt_L, tl.cumsum(dt_L.to(WIDE) * rate, 0), tl.sum(dt_L.to(WIDE) * rate, 0)


@triton.jit
def _later(left, right):
    return tl.maximum(left, right)


@triton.jit
def openings(starts, t, offsets, num_tokens, HAS_STARTS: tl.constexpr):
    """Where in the chunk each token's document opens, −1 if before it; the same of the last one."""
    opened_L, newest = offsets, -1
    if HAS_STARTS:
        starts_L = tl.load(starts + t, mask=t < num_tokens, other=0)
        own_L = tl.where(starts_L != 0, offsets, -1)
        opened_L, newest = tl.associative_scan(own_L, 0, _later), tl.max(own_L, 0)
    return opened_L, newest


@triton.jit
def kept(log_decay, is_same, HAS_STARTS: tl.constexpr):
    """exp of a log decay, zero where it leads to another document."""
    share = tl.exp(log_decay.to(tl.float32))
    if HAS_STARTS:
        share = tl.where(is_same, share, 0.0)
    return share


@triton.jit
def seen(offsets, opened_L, HAS_STARTS: tl.constexpr):
    """Whether the column's token is in the past of the row's, and in its document."""
    seen_LL = offsets[:, None] >= offsets[None, :]
    if HAS_STARTS:
        seen_LL &= opened_L[:, None] <= offsets[None, :]
    return seen_LL


@triton.jit
def kept_between(log_decay_L, log_start_L, offsets, opened_L, HAS_STARTS: tl.constexpr):
    """exp(log decay of the row − log start of the column) where it is seen, else zero."""
    between_LL = (log_decay_L[:, None] - log_start_L[None, :]).to(tl.float32)
    seen_LL = seen(offsets, opened_L, HAS_STARTS)
    return tl.exp(tl.where(seen_LL, between_LL, float("-inf")))


@triton.jit
def walk(
    x,
    dt,
    a,
    b,
    first,
    starts,
    last,
    states,
    stride_xb,
    stride_xt,
    stride_bb,
    stride_bt,
    num_tokens,
    num_heads,
    heads_per_group,
    num_p,
    num_n,
    HAS_FIRST: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Walk over the chunks of one (row, head) with a slice of N; leave the state before each."""
    row, head = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    p, n, offsets = tl.arange(0, P), tl.arange(0, N), tl.arange(0, L)
    n += tl.program_id(1) * N
    rate = tl.load(a + head).to(WIDE)
    num_chunks = tl.cdiv(num_tokens, L)
    row64 = row.to(tl.int64)
    x += row64 * stride_xb + head * num_p
    b += row64 * stride_bb + (head // heads_per_group) * num_n
    dt += row64 * num_tokens * num_heads + head
    if HAS_STARTS:
        starts += row64 * num_tokens
    state_at = p[:, None] * num_n + n[None, :]
    state_mask = (p < num_p)[:, None] & (n < num_n)[None, :]
    program = row64 * num_heads + head
    state = tl.zeros((P, N), dtype=tl.float32)
    if HAS_FIRST:
        state = tl.load(first + program * num_p * num_n + state_at, mask=state_mask, other=0.0)
    for k in range(num_chunks):
        t = k * L + offsets
        at = states + (program * num_chunks + k) * num_p * num_n + state_at
        tl.store(at, state.to(states.dtype.element_ty), mask=state_mask)
        x_LP = load_chunk(x, t, num_tokens, stride_xt, p, num_p)
        b_LN = load_chunk(b, t, num_tokens, stride_bt, n, num_n)
        dt_L, log_decay_L, total = decays(dt, t, num_tokens, num_heads, rate, WIDE)
        _opened_L, newest = openings(starts, t, offsets, num_tokens, HAS_STARTS)
        weight_L = kept(total - log_decay_L, offsets >= newest, HAS_STARTS) * dt_L
        weighted_LP = (x_LP * weight_L[:, None]).to(x_LP.dtype)
        carried = state * kept(total, newest < 0, HAS_STARTS)
        state = carried + dot(tl.trans(weighted_LP), b_LN, PRECISION)
    tl.store(last + program * num_p * num_n + state_at, state, mask=state_mask)


@triton.jit
def output(
    x,
    dt,
    a,
    b,
    c,
    skip,
    states,
    starts,
    y,
    stride_xb,
    stride_xt,
    stride_bb,
    stride_bt,
    stride_cb,
    stride_ct,
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
    """The outputs of one chunk for some heads of one group, from the states before it."""
    num_chunks = tl.cdiv(num_tokens, L)
    row, k = tl.program_id(0) // num_chunks, tl.program_id(0) % num_chunks
    first_head = tl.program_id(1) * heads_per_program
    group = first_head // (num_heads // num_groups)
    p, n, offsets = tl.arange(0, P), tl.arange(0, N), tl.arange(0, L)
    t = k * L + offsets
    row64 = row.to(tl.int64)
    b_LN = load_chunk(b + row64 * stride_bb + group * num_n, t, num_tokens, stride_bt, n, num_n)
    c_LN = load_chunk(c + row64 * stride_cb + group * num_n, t, num_tokens, stride_ct, n, num_n)
    cb_LL = dot(c_LN, tl.trans(b_LN), PRECISION)
    if HAS_STARTS:
        starts += row64 * num_tokens
    opened_L, _newest = openings(starts, t, offsets, num_tokens, HAS_STARTS)
    xp_mask = (t < num_tokens)[:, None] & (p < num_p)[None, :]
    state_at = p[:, None] * num_n + n[None, :]
    state_mask = (p < num_p)[:, None] & (n < num_n)[None, :]
    for head in range(first_head, first_head + heads_per_program):
        rate = tl.load(a + head).to(WIDE)
        x_LP = load_chunk(x + row64 * stride_xb + head * num_p, t, num_tokens, stride_xt, p, num_p)
        dt_L, log_decay_L, _ = decays(
            dt + row64 * num_tokens * num_heads + head, t, num_tokens, num_heads, rate, WIDE
        )
        state_base = ((row64 * num_heads + head) * num_chunks + k) * num_p * num_n
        state_PN = tl.load(states + state_base + state_at, mask=state_mask, other=0.0)
        y_LP = dot(c_LN, tl.trans(state_PN.to(c_LN.dtype)), PRECISION)
        y_LP *= kept(log_decay_L, opened_L < 0, HAS_STARTS)[:, None]
        # The factor dt of the columns goes into the exponent.
        log_start_L = log_decay_L - tl.log(tl.maximum(dt_L, 1e-38)).to(WIDE)
        decay_LL = kept_between(log_decay_L, log_start_L, offsets, opened_L, HAS_STARTS)
        scores_LL = cb_LL * decay_LL
        y_LP += dot(scores_LL.to(x_LP.dtype), x_LP, PRECISION)
        y_LP += tl.load(skip + head) * x_LP
        xp_at = ((row64 * num_tokens + t) * num_heads + head)[:, None] * num_p + p[None, :]
        tl.store(y + xp_at, y_LP.to(y.dtype.element_ty), mask=xp_mask)
