"""Attention over the last W tokens, in blocks, so that its cost grows with T · W and not with T².

Read `equilm/nn/local.py` next.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64  # queries that look at their keys together, at least: smaller products cost as much


def attend_local(
    query_BTHP: Tensor,
    key_BSHP: Tensor,
    value_BSHP: Tensor,
    first_BT: Tensor,
) -> Tensor:
    """softmax(q kᵀ / sqrt(P)) v over the W tokens up to each one's own.

    Args:
        query_BTHP: (B, T, H, P).
        key_BSHP: (B, W − 1 + T, K, P) with K dividing H: those of the W − 1 tokens before, then
            those of the queries.
        value_BSHP: (B, W − 1 + T, K, P).
        first_BT: (B or 1, T) int64: the first slot that each token may see, if that is later than
            W − 1 before its own.

    Returns:
        (B, T, H, P) in the type of the queries.

    Source: Beltagy et al. 2020, arXiv 2004.05150, its window.
    """
    tokens, past = query_BTHP.shape[1], key_BSHP.shape[1] - query_BTHP.shape[1]
    block = min(tokens, max(past + 1, BLOCK))
    count = -(-tokens // block)
    missing = count * block - tokens
    query_BTHP, key_BSHP, value_BSHP = (
        F.pad(part, (0, 0, 0, 0, 0, missing)) for part in (query_BTHP, key_BSHP, value_BSHP)
    )
    rows, heads = len(query_BTHP), query_BTHP.shape[2]
    mask_BKLS = _mask(first_BT, past, block, count)
    y_RHLP = F.scaled_dot_product_attention(
        query_BTHP.unflatten(1, (count, block)).flatten(0, 1).transpose(1, 2),
        _blocks(key_BSHP, block, past, heads).to(query_BTHP.dtype),
        _blocks(value_BSHP, block, past, heads).to(query_BTHP.dtype),
        attn_mask=mask_BKLS.expand(rows, -1, -1, -1).flatten(0, 1)[:, None],
    )
    return y_RHLP.transpose(1, 2).unflatten(0, (rows, count)).flatten(1, 2)[:, :tokens]


def _mask(first_BT: Tensor, past: int, block: int, count: int) -> Tensor:
    """What each token of each block may see of the block's slots."""
    tokens, device = first_BT.shape[1], first_BT.device
    # A padded query sees itself alone.
    slot_T = past + torch.arange(count * block, device=device)
    first_BT = torch.cat([first_BT, slot_T[None, tokens:].expand(len(first_BT), -1)], dim=1)
    first_BT = torch.maximum(first_BT, slot_T - past)
    begin_K = block * torch.arange(count, device=device)
    slot_KS = begin_K[:, None] + torch.arange(block + past, device=device)
    first_BKL, slot_KL = first_BT.unflatten(1, (count, block)), slot_T.unflatten(0, (count, block))
    return (slot_KS[:, None] >= first_BKL[..., None]) & (slot_KS[:, None] <= slot_KL[..., None])


def _blocks(buffer_BSHP: Tensor, block: int, past: int, heads: int) -> Tensor:
    """What the queries of each block may see, (B · blocks, H, block + W − 1, P)."""
    seen_RHSP = buffer_BSHP.unfold(1, block + past, block).flatten(0, 1).transpose(-1, -2)
    # With a mask and shared heads, a GPU would write down all scores.
    return seen_RHSP.repeat_interleave(heads // seen_RHSP.shape[1], dim=1)
