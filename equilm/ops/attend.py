"""Rotary embedding, and attention of new tokens over cached and new keys.

Read `equilm/nn/attention.py` next.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def rotary(x_BTHP: Tensor, position_BT: Tensor, *, theta: float) -> Tensor:
    """Rotate the pairs (x_i, x_{i+P/2}) by position · theta^(−2i/P).

    Args:
        x_BTHP: (B, T, H, P) queries or keys, P even.
        position_BT: (B or 1, T) positions in the sequence, in tokens.
        theta: Base of the frequencies; 500,000 in the published models.

    Returns:
        (B, T, H, P) in the type of `x_BTHP`.

    Source: Su et al. 2021, arXiv 2104.09864, in the half-split layout of Llama in `transformers`.
    """
    half = x_BTHP.shape[-1] // 2
    wide = x_BTHP.dtype if x_BTHP.dtype.itemsize >= 4 else torch.float32
    exponent_P = torch.arange(half, device=x_BTHP.device, dtype=wide) / half
    angle_BT1P = (position_BT[..., None].to(wide) * theta**-exponent_P)[:, :, None, :]
    cos_BT1P, sin_BT1P = angle_BT1P.cos(), angle_BT1P.sin()
    first_BTHP, second_BTHP = x_BTHP[..., :half], x_BTHP[..., half:]
    turned_BTHP = torch.cat(
        [
            first_BTHP * cos_BT1P - second_BTHP * sin_BT1P,
            second_BTHP * cos_BT1P + first_BTHP * sin_BT1P,
        ],
        dim=-1,
    )
    return turned_BTHP.to(x_BTHP.dtype)


def attend(
    query_BTHP: Tensor, key_BSHP: Tensor, value_BSHP: Tensor, position_BT: Tensor | None = None
) -> Tensor:
    """softmax(q kᵀ / sqrt(P)) v over the slots a token may see.

    Args:
        query_BTHP: (B, T, H, P).
        key_BSHP: (B, S, K, P) with K dividing H (grouped queries).
        value_BSHP: (B, S, K, P).
        position_BT: (B, T) the slot of each query: slots up to it are visible. `None` means that
            keys and queries are the same T tokens.

    Returns:
        (B, T, H, P) in the type of the queries.
    """
    mask_B1TS = None
    if position_BT is not None:
        slots_S = torch.arange(key_BSHP.shape[1], device=key_BSHP.device)
        mask_B1TS = slots_S <= position_BT[:, None, :, None]
    y_BHTP = F.scaled_dot_product_attention(
        query_BTHP.transpose(1, 2),
        key_BSHP.transpose(1, 2),
        value_BSHP.transpose(1, 2),
        attn_mask=mask_B1TS,
        is_causal=position_BT is None,
        enable_gqa=query_BTHP.shape[2] != key_BSHP.shape[2],
    )
    return y_BHTP.transpose(1, 2)
