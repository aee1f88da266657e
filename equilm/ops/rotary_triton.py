"""Triton kernels from a projection's output to heads and back; `rotary.py` is their twin.

One pass adds the injection, rotates queries and keys, and lays queries, keys and values out, the
last two in a cache where there is one. Angles are made in registers, for many heads at once: no
table has to outlive a captured graph. Read `attend_triton.py` next.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from equilm.ops.launch import last_dense


@triton.jit
def _turns(position_T, p, RATE: tl.constexpr):
    """Cosines and sines (T, P) of position · 2^(−p · RATE).

    Whole turns are taken off in float64, so that a far position keeps its digits.
    """
    per_token_P = tl.exp2(-p.to(tl.float64) * RATE) * (0.5 / math.pi)
    turns_TP = position_T.to(tl.float64)[:, None] * per_token_P[None]
    angle_TP = ((turns_TP - tl.floor(turns_TP)) * (2 * math.pi)).to(tl.float32)
    return tl.cos(angle_TP), tl.sin(angle_TP)


@triton.jit
def _place(before, num_tokens, num_all, HAS_BEFORE: tl.constexpr, T: tl.constexpr):
    """This program's tokens: their number in the batch, row, number in the row, and position."""
    n = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T)
    row, token = n // num_tokens, n % num_tokens
    position = token
    if HAS_BEFORE:
        position += tl.load(before + row, mask=n < num_all, other=0)
    return n, row, token, position


@triton.jit
def split(
    qkv,
    inject,
    before,
    query,
    key,
    value,
    num_tokens,
    num_all,
    num_slots,
    stride_qkv_row,
    stride_qkv_token,
    stride_inject_row,
    stride_inject_token,
    stride_key_row,
    stride_key_slot,
    stride_key_head,
    stride_value_row,
    stride_value_slot,
    stride_value_head,
    HAS_INJECT: tl.constexpr,
    HAS_BEFORE: tl.constexpr,
    IN_CACHE: tl.constexpr,
    RATE: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    T: tl.constexpr,
    P: tl.constexpr,
):
    """T tokens of HEADS heads, all of them queries, keys or values."""
    n, row, token, position = _place(before, num_tokens, num_all, HAS_BEFORE, T)
    first_head = tl.program_id(1) * HEADS
    p = tl.arange(0, P)
    cos_TP, sin_TP = _turns(position, p, RATE)
    if first_head >= H + K:
        cos_TP, sin_TP = tl.full((T, P), 1.0, tl.float32), tl.zeros((T, P), tl.float32)
    slot = tl.minimum(position, num_slots - 1) if IN_CACHE else token
    mask = (n < num_all)[:, None] & (p < HALF)[None]
    from_TP = (row * stride_qkv_row + token * stride_qkv_token)[:, None] + p[None]
    add_TP = (row * stride_inject_row + token * stride_inject_token)[:, None] + p[None]
    query_TP = (n * (H * 2 * HALF))[:, None] + p[None]
    key_TP = (row * stride_key_row + slot * stride_key_slot)[:, None] + p[None]
    value_TP = (row * stride_value_row + slot * stride_value_slot)[:, None] + p[None]
    for head in range(first_head, first_head + HEADS):
        at = head * (2 * HALF)
        x_TP = tl.load(qkv + from_TP + at, mask=mask, other=0.0).to(tl.float32)
        y_TP = tl.load(qkv + from_TP + (at + HALF), mask=mask, other=0.0).to(tl.float32)
        if HAS_INJECT:
            x_TP += tl.load(inject + add_TP + at, mask=mask, other=0.0).to(tl.float32)
            y_TP += tl.load(inject + add_TP + (at + HALF), mask=mask, other=0.0).to(tl.float32)
        turned_TP, turned2_TP = x_TP * cos_TP - y_TP * sin_TP, y_TP * cos_TP + x_TP * sin_TP
        if head < H:
            _store(query, query_TP + at, turned_TP, turned2_TP, mask, HALF)
        elif head < H + K:
            at_TP = key_TP + (head - H) * stride_key_head
            _store(key, at_TP, turned_TP, turned2_TP, mask, HALF)
        else:
            at_TP = value_TP + (head - H - K) * stride_value_head
            _store(value, at_TP, turned_TP, turned2_TP, mask, HALF)


@triton.jit
def join(
    dquery,
    dkey,
    dvalue,
    before,
    dqkv,
    num_tokens,
    num_all,
    stride_query_row,
    stride_query_token,
    stride_query_head,
    stride_key_row,
    stride_key_token,
    stride_key_head,
    stride_value_row,
    stride_value_token,
    stride_value_head,
    HAS_BEFORE: tl.constexpr,
    RATE: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    T: tl.constexpr,
    P: tl.constexpr,
):
    """The way back: cotangents of HEADS heads turned the other way, side by side again."""
    n, row, token, position = _place(before, num_tokens, num_all, HAS_BEFORE, T)
    first_head = tl.program_id(1) * HEADS
    p = tl.arange(0, P)
    cos_TP, sin_TP = _turns(position, p, RATE)
    mask = (n < num_all)[:, None] & (p < HALF)[None]
    query_TP = (row * stride_query_row + token * stride_query_token)[:, None] + p[None]
    key_TP = (row * stride_key_row + token * stride_key_token)[:, None] + p[None]
    value_TP = (row * stride_value_row + token * stride_value_token)[:, None] + p[None]
    to_TP = (n * ((H + 2 * K) * 2 * HALF))[:, None] + p[None]
    for head in range(first_head, first_head + HEADS):
        if head < H:
            x_TP, y_TP = _load(dquery, query_TP + head * stride_query_head, mask, HALF)
        elif head < H + K:
            x_TP, y_TP = _load(dkey, key_TP + (head - H) * stride_key_head, mask, HALF)
        else:
            x_TP, y_TP = _load(dvalue, value_TP + (head - H - K) * stride_value_head, mask, HALF)
        if head < H + K:
            x_TP, y_TP = x_TP * cos_TP + y_TP * sin_TP, y_TP * cos_TP - x_TP * sin_TP
        _store(dqkv, to_TP + head * (2 * HALF), x_TP, y_TP, mask, HALF)


@triton.jit
def _load(source, at_TP, mask, HALF: tl.constexpr):
    x_TP = tl.load(source + at_TP, mask=mask, other=0.0).to(tl.float32)
    return x_TP, tl.load(source + at_TP + HALF, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(target, at_TP, x_TP, y_TP, mask, HALF: tl.constexpr):
    tl.store(target + at_TP, x_TP.to(target.dtype.element_ty), mask=mask)
    tl.store(target + at_TP + HALF, y_TP.to(target.dtype.element_ty), mask=mask)


class SplitHeads(torch.autograd.Function):
    """`split_heads` without a cache; nothing is kept for the backward pass but the lengths."""

    @staticmethod
    def forward(ctx: Any, qkv, inject, before, heads, kv_heads, theta):
        rows, tokens, channels = qkv.shape
        width = channels // (heads + 2 * kv_heads)
        query, key, value = (
            torch.empty(rows, tokens, number, width, dtype=qkv.dtype, device=qkv.device)
            for number in (heads, kv_heads, kv_heads)
        )
        _split(qkv, inject, before, query, key, value, theta, in_cache=False)
        ctx.save_for_backward(before)
        ctx.dtype, ctx.theta = qkv.dtype, theta
        ctx.inject_dtype = None if inject is None else inject.dtype
        return query, key, value

    @staticmethod
    def backward(ctx: Any, dquery, dkey, dvalue):
        (before,) = ctx.saved_tensors
        rows, tokens, heads, width = dquery.shape
        dquery, dkey, dvalue = map(last_dense, (dquery, dkey, dvalue))
        kv_heads = dkey.shape[2]
        channels = (heads + 2 * kv_heads) * width
        dqkv = torch.empty(rows, tokens, channels, dtype=ctx.dtype, device=dquery.device)
        grid, sizes = _sizes(rows * tokens, heads, kv_heads, width, ctx.theta)
        join[grid](
            dquery,
            dkey,
            dvalue,
            dquery if before is None else before,
            dqkv,
            tokens,
            rows * tokens,
            *dquery.stride()[:3],
            *dkey.stride()[:3],
            *dvalue.stride()[:3],
            HAS_BEFORE=before is not None,
            **sizes,
        )
        dinject = None if ctx.inject_dtype is None else dqkv.to(ctx.inject_dtype)
        return dqkv, dinject, None, None, None, None


def split_heads_into(
    qkv_BTE: Tensor,
    inject_BTE: Tensor | None,
    before_B: Tensor | None,
    key_BSHP: Tensor,
    value_BSHP: Tensor,
    heads: int,
    theta: float,
) -> Tensor:
    """Write keys and values into the buffers, in place; return the queries (B, T, H, P)."""
    rows, tokens, _ = qkv_BTE.shape
    width = key_BSHP.shape[3]
    query_BTHP = torch.empty(rows, tokens, heads, width, dtype=qkv_BTE.dtype, device=qkv_BTE.device)
    assert key_BSHP.stride(-1) == value_BSHP.stride(-1) == 1
    _split(qkv_BTE, inject_BTE, before_B, query_BTHP, key_BSHP, value_BSHP, theta, in_cache=True)
    return query_BTHP


def _split(qkv, inject, before, query, key, value, theta, *, in_cache):
    rows, tokens, heads, width = query.shape
    qkv, inject = last_dense(qkv), None if inject is None else last_dense(inject)
    grid, sizes = _sizes(rows * tokens, heads, key.shape[2], width, theta)
    split[grid](
        qkv,
        qkv if inject is None else inject,
        qkv if before is None else before,
        query,
        key,
        value,
        tokens,
        rows * tokens,
        key.shape[1],
        *qkv.stride()[:2],
        *(qkv if inject is None else inject).stride()[:2],
        *key.stride()[:3],
        *value.stride()[:3],
        HAS_INJECT=inject is not None,
        HAS_BEFORE=before is not None,
        IN_CACHE=in_cache,
        **sizes,
    )


def _sizes(
    tokens: int, heads: int, kv_heads: int, width: int, theta: float
) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid, and the sizes that are known when a kernel is compiled."""
    half = width // 2
    padded = triton.next_power_of_2(half)
    per_program = min(triton.next_power_of_2(tokens), max(1, 2048 // padded))
    together = math.gcd(heads, kv_heads)
    # Few tokens fill the chip by their heads, many share the angles of a token among heads.
    if triton.cdiv(tokens, per_program) < 128:
        together = 1
    sizes = {
        "RATE": math.log2(theta) / half,
        "H": heads,
        "K": kv_heads,
        "HALF": half,
        "HEADS": together,
        "T": per_program,
        "P": padded,
    }
    return (triton.cdiv(tokens, per_program), (heads + 2 * kv_heads) // together), sizes
