"""The Triton kernels of one Mamba2 layer for one token of one row. Read `token_triton.py` first.

With AHEAD a kernel begins before the one before it has ended: it loads what stood before, waits,
and only then reads what came of that kernel or stores anything. `token_rows_kernels.py` is for more
rows.
"""

import triton
import triton.language as tl


@triton.jit
def project(
    x,
    y,
    norm,
    weight,
    scale,
    total,
    out,
    num_inputs,
    num_outputs,
    eps,
    HAS_Y: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """W RMSNorm(x + y) of one row, and x + y.

    A program owns O outputs and loads all their weights at once; the factor of the norm is applied
    behind the product, and so are the scales of weights in 8 bits.
    """
    if AHEAD:
        tl.extra.cuda.gdc_launch_dependents()
    o = tl.program_id(0) * O + tl.arange(0, O)
    k = tl.arange(0, K)
    o_mask, k_mask = o < num_outputs, k < num_inputs
    w_OK = tl.load(
        weight + o[:, None].to(tl.int64) * num_inputs + k[None, :],
        mask=o_mask[:, None] & k_mask[None, :],
        other=0.0,
    )
    norm_K = tl.load(norm + k, mask=k_mask, other=0.0).to(tl.float32)
    if HAS_SCALE:
        scale_O = tl.load(scale + o, mask=o_mask, other=0.0)
    if AHEAD:
        tl.extra.cuda.gdc_wait()
    x_K = tl.load(x + k, mask=k_mask, other=0.0).to(tl.float32)
    if HAS_Y:
        x_K += tl.load(y + k, mask=k_mask, other=0.0).to(tl.float32)
        if tl.program_id(0) == 0:
            tl.store(total + k, x_K, mask=k_mask)
    factor = tl.rsqrt(tl.sum(x_K * x_K, 0) / num_inputs + eps)
    sum_O = tl.sum(w_OK.to(tl.float32) * (x_K * norm_K)[None, :], 1) * factor
    if HAS_SCALE:
        sum_O *= scale_O
    tl.store(out + o, sum_O.to(out.dtype.element_ty), mask=o_mask)


@triton.jit
def raw(proj, inject, at, mask, HAS_INJECT: tl.constexpr):
    value = tl.load(proj + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_INJECT:
        value += tl.load(inject + at, mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def _before(taps, bias, window, c, slot, mask, num_channels, W: tl.constexpr):
    """Of channels c × slots: taps, inputs with a gap for the newest, and the bias in that gap."""
    newest = mask & (slot == W - 1)
    tap = tl.load(taps + c * W + slot, mask=mask & (slot < W), other=0.0).to(tl.float32)
    at, older = slot * num_channels + c, mask & (slot < W - 1)
    seen = tl.load(window + at, mask=older, other=0.0).to(tl.float32)
    offset = tl.load(bias + c + 0 * slot, mask=newest, other=0.0).to(tl.float32)
    return tap, seen, offset


@triton.jit
def _newest(proj, inject, c, slot, mask, HAS_INJECT: tl.constexpr, W: tl.constexpr):
    """The newest input of channels c in its slot, zeros in the others."""
    return raw(proj, inject, c + 0 * slot, mask & (slot == W - 1), HAS_INJECT)


@triton.jit
def _shift(window_out, seen, c, slot, mask, num_channels, W: tl.constexpr):
    tl.store(window_out + (slot - 1) * num_channels + c, seen, mask=mask & (slot > 0) & (slot < W))


@triton.jit
def silu(value):
    return value * tl.sigmoid(value)


@triton.jit
def softplus(value):
    e = tl.exp(-tl.abs(value))
    # log(1 + e) without losing a small e.
    small = e * (1 - e * (0.5 - e * (1.0 / 3)))
    return tl.maximum(value, 0.0) + tl.where(e < 1e-3, small, tl.log(1 + e))


@triton.jit
def read_one(
    proj,
    inject,
    taps,
    taps_bias,
    dt_bias,
    a_log,
    skip,
    window,
    state,
    out,
    window_out,
    state_out,
    wanted,
    num_inner,
    num_channels,
    num_p,
    num_n,
    HAS_INJECT: tl.constexpr,
    WRITE: tl.constexpr,
    SOME: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    A: tl.constexpr,
    J: tl.constexpr,
    S: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """(S c + skip x) · SiLU(gate) with S = exp(dt a) S_before + dt x ⊗ b, for P of one head.

    Computed as exp(dt a) (S_before c) + (dt b·c + skip) x. N is laid out as A × J, of which sums
    over A stay within a thread. What comes after is stored if WRITE, and if SOME when `wanted`.
    """
    if AHEAD:
        tl.extra.cuda.gdc_launch_dependents()
    head, p = tl.program_id(0), tl.program_id(1) * P + tl.arange(0, P)
    n_AJ = tl.arange(0, A)[:, None] * J + tl.arange(0, J)[None, :]
    p_mask, n_mask = p < num_p, n_AJ < num_n
    at_P = head * num_p + p
    # Channels of the convolution: x first, then the directions b and c.
    x_P1, b_AJ1 = at_P[:, None], (num_inner + n_AJ)[:, :, None]
    c_AJ1 = b_AJ1 + num_n
    s_1S, s_11S = tl.arange(0, S)[None, :], tl.arange(0, S)[None, None, :]
    p_mask_P1, n_mask_AJ1 = p_mask[:, None], n_mask[:, :, None]
    state_at = at_P[None, :, None] * num_n + n_AJ[:, None, :]
    mask = p_mask[None, :, None] & n_mask[:, None, :]
    state_APJ = tl.load(state + state_at, mask=mask, other=0.0).to(tl.float32)
    x_tap, x_seen, x_bias = _before(taps, taps_bias, window, x_P1, s_1S, p_mask_P1, num_channels, W)
    b_tap, b_seen, b_bias = _before(
        taps, taps_bias, window, b_AJ1, s_11S, n_mask_AJ1, num_channels, W
    )
    c_tap, c_seen, c_bias = _before(
        taps, taps_bias, window, c_AJ1, s_11S, n_mask_AJ1, num_channels, W
    )
    dt_offset = tl.load(dt_bias + head).to(tl.float32)
    rate = tl.exp(tl.load(a_log + head).to(tl.float32))
    through = tl.load(skip + head).to(tl.float32)
    if AHEAD:
        tl.extra.cuda.gdc_wait()
    gate_P = silu(raw(proj, inject, at_P, p_mask, HAS_INJECT))
    proj += num_inner
    inject += num_inner
    x_seen += _newest(proj, inject, x_P1, s_1S, p_mask_P1, HAS_INJECT, W)
    b_seen += _newest(proj, inject, b_AJ1, s_11S, n_mask_AJ1, HAS_INJECT, W)
    c_seen += _newest(proj, inject, c_AJ1, s_11S, n_mask_AJ1, HAS_INJECT, W)
    step = raw(proj, inject, num_channels + head, head >= 0, HAS_INJECT)
    x_P = silu(tl.sum(x_seen * x_tap + x_bias, 1))
    b_AJ = silu(tl.sum(b_seen * b_tap + b_bias, 2))
    c_AJ = silu(tl.sum(c_seen * c_tap + c_bias, 2))
    dt = softplus(step + dt_offset)
    decay = tl.exp(-dt * rate)
    y_P = tl.sum(tl.sum(state_APJ * c_AJ[:, None, :], 0), 1) * decay
    y_P += (dt * tl.sum(tl.sum(b_AJ * c_AJ, 0), 0) + through) * x_P
    tl.store(out + at_P, (y_P * gate_P).to(out.dtype.element_ty), mask=p_mask)
    if WRITE:
        stored_p, stored_n = num_p, num_n
        if SOME:
            kept = tl.load(wanted).to(tl.int32)
            stored_p, stored_n = num_p * kept, num_n * kept
        stores = p < stored_p
        # Directions are shared by all heads; the first program leaves their window.
        first = n_AJ < tl.where(head + tl.program_id(1) == 0, stored_n, 0)
        state_APJ = state_APJ * decay + (dt * x_P)[None, :, None] * b_AJ[:, None, :]
        tl.store(state_out + state_at, state_APJ, mask=mask & stores[None, :, None])
        _shift(window_out, x_seen, x_P1, s_1S, stores[:, None], num_channels, W)
        _shift(window_out, b_seen, b_AJ1, s_11S, first[:, :, None], num_channels, W)
        _shift(window_out, c_seen, c_AJ1, s_11S, first[:, :, None], num_channels, W)
