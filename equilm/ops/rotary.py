"""Rotary embedding, and a projection's output as the heads that attention wants.

Read `attend.py` next.
"""

from functools import lru_cache

import torch
from torch import Tensor


def split_heads(
    qkv_BTE: Tensor,
    inject_BTE: Tensor | None = None,
    before: Tensor | int = 0,
    *,
    heads: int,
    kv_heads: int,
    theta: float,
    cache: tuple[Tensor, Tensor] | None = None,
    position_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """[q | k | v] + inject; q and k rotated by their positions; k and v put into the cache.

    Args:
        qkv_BTE: (B, T, E), E = (H + 2K) · P, output of one projection.
        inject_BTE: (B, T, E) added to it, any float type.
        before: How many tokens came before these, in each row (B,) int64 or in all.
        heads: H.
        kv_heads: K.
        theta: Base of the rotary frequencies; 500,000 in the published models.
        cache: Buffers (B, S, K, P) whose slots from `before` on take the keys and values; in
            place, unless autograd needs the buffers as they are. What would lie past the end is
            padding, and the last slot may take it.
        position_BT: (B, T) int64 positions to rotate by; `None` counts on from `before`. The kernel
            does not know it yet.

    Returns:
        Queries (B, T, H, P) in the type of `qkv_BTE`; keys and values likewise (B, T, K, P), or
        with a cache the buffers (B, S, K, P) that hold them, in their type.

    Source: Llama; injection before the rotation as in arXiv 2502.07827. On a GPU:
    `rotary_triton.py`.
    """
    in_place = cache is not None and not (
        torch.is_grad_enabled() or cache[0].requires_grad or cache[1].requires_grad
    )
    if qkv_BTE.is_cuda and qkv_BTE.dtype != torch.float64 and position_BT is None:
        from equilm.ops.rotary_triton import SplitHeads, split_heads_into

        before_B = before if isinstance(before, Tensor) else None
        if isinstance(before, int) and before > 0:
            before_B = torch.full((len(qkv_BTE),), before, device=qkv_BTE.device)
        if cache is not None and in_place:
            query_BTHP = split_heads_into(qkv_BTE, inject_BTE, before_B, *cache, heads, theta)
            return query_BTHP, *cache
        parts = SplitHeads.apply(qkv_BTE, inject_BTE, before_B, heads, kv_heads, theta)
    else:
        parts = _split_heads(qkv_BTE, inject_BTE, before, heads, kv_heads, theta, position_BT)
    if cache is None:
        return parts
    write = _write if in_place else _written
    query_BTHP, *new = parts
    key_BSHP, value_BSHP = (
        write(buffer_BSHP, new_BTHP.to(buffer_BSHP.dtype), before)
        for buffer_BSHP, new_BTHP in zip(cache, new, strict=True)
    )
    return query_BTHP, key_BSHP, value_BSHP


def rotary(
    x_BTHP: Tensor,
    before: Tensor | int = 0,
    *,
    theta: float,
    position_BT: Tensor | None = None,
) -> Tensor:
    """Rotate the pairs (x_i, x_{i+P/2}) by position · theta^(−2i/P).

    Args:
        x_BTHP: (B, T, H, P) queries or keys, P even.
        before: How many tokens came before these, in each row (B,) int64 or in all.
        theta: Base of the frequencies.
        position_BT: (B, T) int64 positions; `None` counts on from `before`.

    Returns:
        (B, T, H, P) in the type of `x_BTHP`, computed in float32 or wider.

    Source: Su et al. 2021, arXiv 2104.09864, in the half-split layout of Llama in `transformers`.
    """
    wide = torch.promote_types(x_BTHP.dtype, torch.float32)
    angles_BT1P = _angles(x_BTHP, before, theta, wide, position_BT)
    cos_BT1P, sin_BT1P = angles_BT1P.chunk(2, dim=-1)
    half = x_BTHP.shape[-1] // 2
    swapped_BTHP = torch.cat([x_BTHP[..., half:], x_BTHP[..., :half]], dim=-1)
    turned_BTHP = torch.addcmul(x_BTHP.to(wide) * cos_BT1P, swapped_BTHP.to(wide), sin_BT1P)
    return turned_BTHP.to(x_BTHP.dtype)


def _split_heads(
    qkv_BTE: Tensor,
    inject_BTE: Tensor | None,
    before: Tensor | int,
    heads: int,
    kv_heads: int,
    theta: float,
    position_BT: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    sum_BTE = qkv_BTE
    if inject_BTE is not None:
        wide = torch.promote_types(qkv_BTE.dtype, torch.float32)
        sum_BTE = qkv_BTE.to(wide) + inject_BTE
    all_BTHP = sum_BTE.unflatten(-1, (heads + 2 * kv_heads, -1))
    turned_BTHP, value_BTHP = all_BTHP.split([heads + kv_heads, kv_heads], dim=2)
    turned_BTHP = rotary(turned_BTHP, before, theta=theta, position_BT=position_BT)
    turned_BTHP = turned_BTHP.to(qkv_BTE.dtype)
    query_BTHP, key_BTHP = turned_BTHP.split([heads, kv_heads], dim=2)
    return query_BTHP, key_BTHP, value_BTHP.to(qkv_BTE.dtype)


def _angles(
    x_BTHP: Tensor,
    before: Tensor | int,
    theta: float,
    dtype: torch.dtype,
    position_BT: Tensor | None,
) -> Tensor:
    """[cos | cos | −sin | sin] of the tokens' angles, (B or 1, T, 1, 2P)."""
    tokens, half = x_BTHP.shape[1], x_BTHP.shape[3] // 2
    if position_BT is not None and (position_BT.is_cuda or isinstance(before, Tensor)):
        # Which positions there are is for the device alone to know, so that graphs may hold this.
        return _of_positions(position_BT[:, :, None], half, theta, dtype)
    end = tokens + (before if isinstance(before, int) else int(before.max()))
    table_S1P = _table(_power_of_2(end), half, theta, dtype)
    if position_BT is not None:  # in a document, so not behind the place in the row
        return table_S1P[position_BT]
    if isinstance(before, int):
        return table_S1P[None, before:end].to(x_BTHP.device)
    return table_S1P.to(x_BTHP.device)[_slots(before, tokens)]


@lru_cache(maxsize=8)
def _table(positions: int, half: int, theta: float, dtype: torch.dtype) -> Tensor:
    """What `_angles` chooses from, for the first positions; the same for all layers and sweeps."""
    # A table made inside inference mode could not be used outside it.
    with torch.inference_mode(False):
        position_S1 = torch.arange(positions, device="cpu")[:, None]
        return _of_positions(position_S1, half, theta, dtype)


def _of_positions(position_S1: Tensor, half: int, theta: float, dtype: torch.dtype) -> Tensor:
    """[cos | cos | −sin | sin] of the angles at positions (..., 1), which become (..., 1, 2P)."""
    exponent_P = torch.arange(half, device=position_S1.device, dtype=torch.float64) / half
    angle_S1P = position_S1[..., None] * theta**-exponent_P
    cos_S1P, sin_S1P = angle_S1P.cos(), angle_S1P.sin()
    return torch.cat([cos_S1P, cos_S1P, -sin_S1P, sin_S1P], dim=-1).to(dtype)


def _power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _slots(before_B: Tensor, tokens: int) -> Tensor:
    return before_B[:, None] + torch.arange(tokens, device=before_B.device)


def _write(buffer_BSHP: Tensor, new_BTHP: Tensor, before: Tensor | int) -> Tensor:
    """Put the new tokens into their slots, in place."""
    if isinstance(before, int):
        slots_BTHP = buffer_BSHP[:, before : before + new_BTHP.shape[1]]
        slots_BTHP.copy_(new_BTHP[:, : slots_BTHP.shape[1]])
        return buffer_BSHP
    return buffer_BSHP.index_put_(_index(buffer_BSHP, new_BTHP, before), new_BTHP)


def _written(buffer_BSHP: Tensor, new_BTHP: Tensor, before: Tensor | int) -> Tensor:
    """Return a buffer with the new tokens in their slots."""
    if isinstance(before, int):
        new_BTHP = new_BTHP[:, : buffer_BSHP.shape[1] - before]
        end = before + new_BTHP.shape[1]
        return buffer_BSHP.slice_scatter(new_BTHP, dim=1, start=before, end=end)
    return buffer_BSHP.index_put(_index(buffer_BSHP, new_BTHP, before), new_BTHP)


def _index(buffer_BSHP: Tensor, new_BTHP: Tensor, before_B: Tensor) -> tuple[Tensor, Tensor]:
    rows_B1 = torch.arange(len(before_B), device=before_B.device)[:, None]
    slot_BT = _slots(before_B, new_BTHP.shape[1])
    return rows_B1, slot_BT.clamp(max=buffer_BSHP.shape[1] - 1)
