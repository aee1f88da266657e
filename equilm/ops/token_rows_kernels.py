"""The Triton kernel of one Mamba2 layer for one token of many rows. Read `token_triton.py` first.

Not `token_kernels.read_one`, whose way takes 1.5 times as long for the states of 64 rows.
"""

import triton
import triton.language as tl

from equilm.ops.token_kernels import raw, silu, softplus


@triton.jit
def _convolved(
    proj,
    inject,
    taps,
    bias,
    window,
    window_out,
    c,
    mask,
    num_inner,
    num_channels,
    writes,
    HAS_INJECT: tl.constexpr,
    WRITE: tl.constexpr,
    W: tl.constexpr,
):
    """SiLU(conv) of channels c; whoever `writes` them leaves the next window."""
    newest = raw(proj, inject, num_inner + c, mask, HAS_INJECT)
    value = newest * tl.load(taps + c * W + (W - 1), mask=mask, other=0.0).to(tl.float32)
    value += tl.load(bias + c, mask=mask, other=0.0).to(tl.float32)
    for slot in tl.static_range(W - 1):
        at = slot * num_channels + c
        seen = tl.load(window + at, mask=mask, other=0.0).to(tl.float32)
        value += seen * tl.load(taps + c * W + slot, mask=mask, other=0.0).to(tl.float32)
        if WRITE and slot > 0:
            tl.store(window_out + at - num_channels, seen, mask=mask & writes)
    if WRITE and W > 1:
        tl.store(window_out + (W - 2) * num_channels + c, newest, mask=mask & writes)
    return silu(value)


@triton.jit
def read_rows(
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
    stride_proj,
    stride_inject,
    num_heads,
    heads_per_group,
    num_groups,
    HAS_INJECT: tl.constexpr,
    WRITE: tl.constexpr,
    SOME: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
):
    """(S c + skip x) · SiLU(gate) with S = exp(dt a) S_before + dt x ⊗ b, for P of one head.

    What comes after is stored if WRITE, and if SOME of the rows in `wanted` alone.
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p, n = tl.program_id(2) * P + tl.arange(0, P), tl.arange(0, N)
    p_mask, n_mask = p < num_p, n < num_n
    proj += row * stride_proj
    inject += row * stride_inject
    window += row * (W - 1) * num_channels
    window_out += row * (W - 1) * num_channels
    group, at = head // heads_per_group, head * num_p + p
    gate_P = silu(raw(proj, inject, at, p_mask, HAS_INJECT))
    stored_p, stored_n = num_p, num_n
    if SOME:
        kept = tl.load(wanted + row).to(tl.int32)
        stored_p, stored_n = num_p * kept, num_n * kept
    stores = p < stored_p
    x_P = _convolved(
        proj, inject, taps, taps_bias, window, window_out, at, p_mask,
        num_inner, num_channels, stores, HAS_INJECT, WRITE, W,
    )  # fmt: skip
    # Directions are shared by a group; its first program leaves their window.
    first = n < tl.where(head % heads_per_group + tl.program_id(2) == 0, stored_n, 0)
    at_b = num_inner + group * num_n + n
    b_N = _convolved(
        proj, inject, taps, taps_bias, window, window_out, at_b, n_mask,
        num_inner, num_channels, first, HAS_INJECT, WRITE, W,
    )  # fmt: skip
    c_N = _convolved(
        proj, inject, taps, taps_bias, window, window_out, at_b + num_groups * num_n, n_mask,
        num_inner, num_channels, first, HAS_INJECT, WRITE, W,
    )  # fmt: skip
    step = raw(proj, inject, num_inner + num_channels + head, head >= 0, HAS_INJECT)
    dt = softplus(step + tl.load(dt_bias + head).to(tl.float32))
    decay = tl.exp(-dt * tl.exp(tl.load(a_log + head).to(tl.float32)))
    state_at = ((row * num_heads + head) * num_p + p[:, None]) * num_n + n[None, :]
    mask = p_mask[:, None] & n_mask[None, :]
    state_PN = tl.load(state + state_at, mask=mask, other=0.0).to(tl.float32)
    state_PN = state_PN * decay + (dt * x_P)[:, None] * b_N[None, :]
    if WRITE:
        tl.store(state_out + state_at, state_PN, mask=mask & stores[:, None])
    y_P = tl.sum(state_PN * c_N[None, :], 1) + tl.load(skip + head).to(tl.float32) * x_P
    tl.store(out + row * num_inner + at, (y_P * gate_P).to(out.dtype.element_ty), mask=p_mask)
