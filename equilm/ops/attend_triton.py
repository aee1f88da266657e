"""A Triton kernel of attention over a cache, forward only; `attend.py` is its twin.

Rows of different lengths need no mask: each program reads how many slots its tokens see. The heads
that share keys are queries of one program.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def attend(
    query,
    key,
    value,
    before,
    out,
    num_tokens,
    num_slots,
    stride_key_row,
    stride_key_slot,
    stride_key_head,
    stride_value_row,
    stride_value_slot,
    stride_value_head,
    scale,
    PRECISION: tl.constexpr,
    K: tl.constexpr,
    SHARE: tl.constexpr,
    WIDTH: tl.constexpr,
    Q: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
):
    """Q queries that share their keys, over blocks of S slots."""
    row, shared = tl.program_id(0).to(tl.int64) // K, tl.program_id(0) % K
    m = tl.program_id(1) * Q + tl.arange(0, Q)
    token, head = m // SHARE, shared * SHARE + m % SHARE
    p, s = tl.arange(0, P), tl.arange(0, S)
    at_QP = (((row * num_tokens + token) * (K * SHARE) + head) * WIDTH)[:, None] + p[None]
    mask_QP = (token < num_tokens)[:, None] & (p < WIDTH)[None]
    query_QP = tl.load(query + at_QP, mask=mask_QP, other=0.0)
    first = tl.load(before + row)
    last_Q = first + token
    end = tl.minimum(first + tl.minimum(tl.max(token, 0) + 1, num_tokens), num_slots)
    key += row * stride_key_row + shared * stride_key_head
    value += row * stride_value_row + shared * stride_value_head
    top_Q = tl.full((Q,), float("-inf"), tl.float32)
    sum_Q = tl.zeros((Q,), tl.float32)
    acc_QP = tl.zeros((Q, P), tl.float32)
    for start in range(0, end, S):
        slot = start + s
        mask_SP = (slot < end)[:, None] & (p < WIDTH)[None]
        key_SP = tl.load(key + slot[:, None] * stride_key_slot + p[None], mask=mask_SP, other=0.0)
        score_QS = tl.dot(query_QP, tl.trans(key_SP.to(query_QP.dtype)), input_precision=PRECISION)
        seen_QS = (slot[None] <= last_Q[:, None]) & (slot < end)[None]
        score_QS = tl.where(seen_QS, score_QS * scale, float("-inf"))
        # The first block holds slot 0, which every query sees: the maximum is finite ever after.
        new_Q = tl.maximum(top_Q, tl.max(score_QS, 1))
        weight_QS = tl.exp2(score_QS - new_Q[:, None])
        shrink_Q = tl.exp2(top_Q - new_Q)
        value_SP = tl.load(
            value + slot[:, None] * stride_value_slot + p[None], mask=mask_SP, other=0.0
        ).to(query_QP.dtype)
        product_QP = tl.dot(weight_QS.to(query_QP.dtype), value_SP, input_precision=PRECISION)
        acc_QP = acc_QP * shrink_Q[:, None] + product_QP
        sum_Q = sum_Q * shrink_Q + tl.sum(weight_QS, 1)
        top_Q = new_Q
    acc_QP = acc_QP / sum_Q[:, None]
    tl.store(out + at_QP, acc_QP.to(out.dtype.element_ty), mask=mask_QP)


def attend_cached(
    query_BTHP: Tensor, key_BSHP: Tensor, value_BSHP: Tensor, before_B: Tensor
) -> Tensor:
    """`equilm.ops.attend.attend` of a cache, without gradients."""
    query_BTHP = query_BTHP.contiguous()
    rows, tokens, heads, width = query_BTHP.shape
    kv_heads = key_BSHP.shape[2]
    share = heads // kv_heads
    # Products in full float32 are made of single multiplications, and run out of registers.
    is_wide = query_BTHP.dtype == torch.float32
    queries = min(16 if is_wide else 64, max(16, triton.next_power_of_2(tokens * share)))
    out_BTHP = torch.empty_like(query_BTHP)
    attend[(rows * kv_heads, triton.cdiv(tokens * share, queries))](
        query_BTHP,
        key_BSHP,
        value_BSHP,
        before_B,
        out_BTHP,
        tokens,
        key_BSHP.shape[1],
        *key_BSHP.stride()[:3],
        *value_BSHP.stride()[:3],
        math.log2(math.e) / math.sqrt(width),
        PRECISION="ieee" if is_wide else "tf32",
        K=kv_heads,
        SHARE=share,
        WIDTH=width,
        Q=queries,
        S=32 if is_wide else 64,
        P=max(16, triton.next_power_of_2(width)),
        num_warps=4,
        num_stages=2,
    )
    return out_BTHP
