"""The Triton kernel of the gradients of a selective scan, for a span of tokens of some channels.

Numbers of `selective_kernels.py` hold here: a tile is (C, N), tokens are taken four at a time. The
sums over channels are products of matrices, which cost less than exchanges between lanes: of all
products of four tokens at once, rounded to the type that they are stored in. Read
`selective_triton.py` first.
"""

import triton
import triton.language as tl

from equilm.ops.selective_kernels import is_there, read_channels, read_directions


@triton.jit
def _four(parts, FIRST: tl.constexpr, STEP: tl.constexpr):
    """Four tensors, from the first or back from the last, along two new dimensions, (…, 2, 2)."""
    one = tl.join(parts[FIRST], parts[FIRST + 2 * STEP])
    return tl.join(one, tl.join(parts[FIRST + STEP], parts[FIRST + 3 * STEP]))


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
    dfirst,
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

    `states` has the state before each chunk, `dstates` the cotangent of that behind each span; none
    means zeros. `dbc` takes the sums over the C channels alone, `sums` those over the span: of a,
    then of skip. `dfirst` takes the cotangent of the state before all, if asked.
    """
    k, row = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    i_C, n_N = tl.program_id(0) * C + tl.arange(0, C), tl.arange(0, N)
    mask_C, mask_N = i_C < num_channels, n_N < num_n
    at_CN, mask_CN = i_C[:, None] * num_n + n_N[None, :], mask_C[:, None] & mask_N[None, :]
    size = num_n * num_channels
    here = row * tl.num_programs(1) + k
    a_CN = 1.4426950408889634 * tl.load(a + at_CN, mask=mask_CN, other=0.0)
    skip_C = tl.load(skip + i_C, mask=mask_C, other=0.0)
    g_CN = tl.zeros((C, N), dtype=tl.float32)
    if dstates is not None:
        g_CN = tl.load(dstates + here * size + at_CN, mask=mask_CN, other=0.0)
    plain_C = row * num_tokens * num_channels + i_C
    x_C = x + row * stride_xb + i_C
    dt_C, dy_C = dt + plain_C, dy + plain_C
    b_N, c_N = b + row * num_tokens * num_n + n_N, c + row * num_tokens * num_n + n_N
    dbc += (tl.program_id(0) * tl.num_programs(2) + row) * 2 * num_tokens * num_n
    l_L = tl.arange(0, CHUNK)
    # Which of the products belong to row z of the sums: db of four tokens, then dc, then nothing.
    z_Z, q_Q = tl.arange(0, 16), tl.arange(0, C * 2 * CHUNK)
    part = dbc.dtype.element_ty
    picks_ZQ = (z_Z[:, None] == q_Q[None, :] % (2 * CHUNK)).to(tl.float32).to(part)
    token_Z = z_Z // CHUNK * num_tokens + z_Z % CHUNK
    da_CN, dskip_C = tl.zeros((C, N), dtype=tl.float32), tl.zeros((C,), dtype=tl.float32)
    first = k * span // CHUNK
    last = min(first + span // CHUNK, num_chunks) - 1
    states += row * num_chunks * size
    for back in range(last - first + 1):
        t = (last - back) * CHUNK
        dts = read_channels(dt_C, t, num_tokens, i_C, num_channels, num_channels, 1, CHUNK, WHOLE)
        xs = read_channels(x_C, t, num_tokens, i_C, num_channels, stride_xt, 1, CHUNK, WHOLE)
        dys = read_channels(dy_C, t, num_tokens, i_C, num_channels, num_channels, 1, CHUNK, WHOLE)
        bs = read_directions(b_N, t, num_tokens, n_N, num_n, 1, CHUNK, WHOLE)
        at = tl.max_contiguous(states + (last - back) * size + at_CN, [1, 4])
        h_CN = tl.load(at, mask=mask_CN, other=0.0).to(tl.float32)
        decays, kept, dcs = (), (), ()
        for j in tl.static_range(CHUNK):
            decays += (tl.exp2(dts[j][:, None] * a_CN),)  # type: ignore[assignment]
            kept += (h_CN * decays[j],)  # type: ignore[assignment]
            h_CN = kept[j] + bs[j][None, :] * (dts[j] * xs[j])[:, None]
            dcs += (h_CN * dys[j][:, None],)  # type: ignore[assignment]
        cs = read_directions(c_N, t, num_tokens, n_N, num_n, 1, CHUNK, WHOLE)
        dbs, dxs, ddts = (), (), ()
        for j in tl.static_range(CHUNK - 1, -1, -1):
            g_CN += cs[j][None, :] * dys[j][:, None]
            dbs += (g_CN * (dts[j] * xs[j])[:, None],)  # type: ignore[assignment]
            worth_CN = g_CN * kept[j]
            da_CN += worth_CN * dts[j][:, None]
            along_C = tl.sum(g_CN * bs[j][None, :], 1)
            dxs += (dts[j] * along_C + skip_C * dys[j],)  # type: ignore[assignment]
            ddt_C = 0.6931471805599453 * tl.sum(worth_CN * a_CN, 1) + xs[j] * along_C
            ddts += (ddt_C,)  # type: ignore[assignment]
            dskip_C += dys[j] * xs[j]
            g_CN *= decays[j]
        at_CL = plain_C[:, None] + (t + l_L)[None, :] * num_channels
        mask_CL = mask_C[:, None] & (t + l_L < num_tokens)[None, :]
        dx_CL = tl.reshape(_four(dxs, 3, -1), (C, CHUNK))
        tl.store(dx + at_CL, dx_CL.to(dx.dtype.element_ty), mask=mask_CL)
        ddt_CL = tl.reshape(_four(ddts, 3, -1), (C, CHUNK))
        tl.store(ddt + at_CL, ddt_CL, mask=mask_CL)
        db_CNJJ = _four(dbs, 3, -1)
        dc_CNJJ = _four(dcs, 0, 1)
        each_CKJJN = tl.permute(tl.join(db_CNJJ, dc_CNJJ), (0, 4, 2, 3, 1))
        each_QN = tl.reshape(each_CKJJN.to(part), (C * 2 * CHUNK, N))
        all_ZN = tl.dot(picks_ZQ, each_QN, input_precision="tf32x3")
        there_Z = (z_Z < 2 * CHUNK) & (t + z_Z % CHUNK < num_tokens)
        at_ZN = (t + token_Z)[:, None] * num_n + n_N[None, :]
        tl.store(dbc + at_ZN, all_ZN.to(part), mask=there_Z[:, None] & mask_N[None, :])
    sums += here * (num_n + 1) * num_channels
    tl.store(sums + at_CN, da_CN, mask=mask_CN)
    tl.store(sums + size + i_C, dskip_C, mask=mask_C)
    if dfirst is not None:
        there_C = is_there(k, 1, i_C, num_channels)  # in the first span
        mask_CN = there_C[:, None] & mask_N[None, :]
        tl.store(dfirst + row * size + at_CN, g_CN, mask=mask_CN)
