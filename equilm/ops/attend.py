"""Attention of new tokens over cached and new keys. Read `equilm/nn/attention.py` next."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    query_BTHP: Tensor,
    key_BSHP: Tensor,
    value_BSHP: Tensor,
    before: Tensor | int = 0,
    first_BT: Tensor | None = None,
) -> Tensor:
    """softmax(q kᵀ / sqrt(P)) v over the slots a token may see, those up to its own.

    Args:
        query_BTHP: (B, T, H, P).
        key_BSHP: (B, S, K, P) with K dividing H (grouped queries), any float type.
        value_BSHP: (B, S, K, P).
        before: The slot of the first token, of each row (B,) int64 or of all.
        first_BT: (B, T) int64: the first slot that each token may see, that of its document; `None`
            means 0. No kernel here knows it yet.

    Returns:
        (B, T, H, P) in the type of the queries.

    On a GPU: PyTorch's flash attention from slot 0 on, else without gradients `attend_triton.py`.
    """
    tokens, slots = query_BTHP.shape[1], key_BSHP.shape[1]
    has_kernel = first_BT is None and _has_kernel(query_BTHP, key_BSHP, value_BSHP)
    if isinstance(before, Tensor) and has_kernel:
        from equilm.ops.attend_triton import attend_cached

        return attend_cached(query_BTHP, key_BSHP, value_BSHP, before)
    if isinstance(before, int):
        slots = min(slots, before + tokens)
    elif not before.is_cuda:
        # Reading the lengths costs a CPU nothing, and what lies past them need not be looked at.
        slots = min(slots, int(before.max()) + tokens)
    is_causal = isinstance(before, int) and before == 0 and slots == tokens and first_BT is None
    mask_B1TS = None
    if not is_causal and (tokens > 1 or isinstance(before, Tensor) or first_BT is not None):
        device = query_BTHP.device
        # A number stays one: a graph holds no copy of a tensor made of it to the device.
        first_B111 = before if isinstance(before, int) else before.view(-1, 1, 1, 1)
        last_B1T1 = torch.arange(tokens, device=device).view(1, 1, -1, 1) + first_B111
        mask_B1TS = torch.arange(slots, device=device) <= last_B1T1
        if first_BT is not None:
            mask_B1TS = mask_B1TS & (
                torch.arange(slots, device=device) >= first_BT[:, None, :, None]
            )
    # Without a mask and in half precision, the transposed views are what flash attention takes.
    y_BHTP = F.scaled_dot_product_attention(
        query_BTHP.transpose(1, 2),
        key_BSHP[:, :slots].to(query_BTHP.dtype).transpose(1, 2),
        value_BSHP[:, :slots].to(query_BTHP.dtype).transpose(1, 2),
        attn_mask=mask_B1TS,
        is_causal=is_causal,
        enable_gqa=query_BTHP.shape[2] != key_BSHP.shape[2],
    )
    return y_BHTP.transpose(1, 2)


def _has_kernel(query_BTHP: Tensor, key_BSHP: Tensor, value_BSHP: Tensor) -> bool:
    """On a GPU, as long as nobody asks for gradients."""
    recording = torch.is_grad_enabled() and any(
        part.requires_grad for part in (query_BTHP, key_BSHP, value_BSHP)
    )
    return query_BTHP.is_cuda and query_BTHP.dtype != torch.float64 and not recording
