"""Attention of new tokens over cached and new keys. Read `equilm/nn/attention.py` next."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    query_BTHP: Tensor, key_BSHP: Tensor, value_BSHP: Tensor, before_B: Tensor | None = None
) -> Tensor:
    """softmax(q kᵀ / sqrt(P)) v over the slots a token may see.

    Args:
        query_BTHP: (B, T, H, P).
        key_BSHP: (B, S, K, P) with K dividing H (grouped queries), any float type.
        value_BSHP: (B, S, K, P).
        before_B: (B,) int64: the tokens are those of the slots from here on, and see all slots up
            to their own. `None` means that keys and queries are the same T tokens.

    Returns:
        (B, T, H, P) in the type of the queries.

    On a GPU without gradients: `attend_triton.py`; without a cache, PyTorch's flash attention.
    """
    if before_B is None:
        return _product(query_BTHP, key_BSHP, value_BSHP, None, is_causal=True)
    recording = torch.is_grad_enabled() and any(
        part.requires_grad for part in (query_BTHP, key_BSHP, value_BSHP)
    )
    if query_BTHP.is_cuda and query_BTHP.dtype != torch.float64 and not recording:
        from equilm.ops.attend_triton import attend_cached

        return attend_cached(query_BTHP, key_BSHP, value_BSHP, before_B)
    tokens, slots = query_BTHP.shape[1], key_BSHP.shape[1]
    if not query_BTHP.is_cuda:
        # Reading the lengths costs a CPU nothing, and what lies past them need not be looked at.
        slots = min(slots, int(before_B.max()) + tokens)
        key_BSHP, value_BSHP = key_BSHP[:, :slots], value_BSHP[:, :slots]
    last_BT1 = (before_B[:, None] + torch.arange(tokens, device=before_B.device))[..., None]
    mask_B1TS = (torch.arange(slots, device=before_B.device) <= last_BT1)[:, None]
    return _product(query_BTHP, key_BSHP, value_BSHP, mask_B1TS, is_causal=False)


def _product(
    query_BTHP: Tensor,
    key_BSHP: Tensor,
    value_BSHP: Tensor,
    mask_B1TS: Tensor | None,
    *,
    is_causal: bool,
) -> Tensor:
    # Without a mask and in half precision, the transposed views are what flash attention takes.
    y_BHTP = F.scaled_dot_product_attention(
        query_BTHP.transpose(1, 2),
        key_BSHP.to(query_BTHP.dtype).transpose(1, 2),
        value_BSHP.to(query_BTHP.dtype).transpose(1, 2),
        attn_mask=mask_B1TS,
        is_causal=is_causal,
        enable_gqa=query_BTHP.shape[2] != key_BSHP.shape[2],
    )
    return y_BHTP.transpose(1, 2)
