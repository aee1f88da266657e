"""Causal depthwise convolution with a carried window, then SiLU.

Read `equilm/nn/mamba2.py` next.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def conv_silu(
    x_BTC: Tensor,
    weight_CW: Tensor,
    bias_C: Tensor,
    window_BWC: Tensor | None = None,
    *,
    valid_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y_t = SiLU(bias + Σ_w weight_w · x_{t−W+1+w}) per channel.

    Args:
        x_BTC: (B, T, C) inputs.
        weight_CW: (C, W) taps, the last one multiplies the newest input.
        bias_C: (C,).
        window_BWC: (B, W−1, C) the inputs before x; `None` means zeros.
        valid_B: (B,) how many tokens of each row count for the window returned; `None` means T.

    Returns:
        y_BTC in the type of `x_BTC`, and the next window (B, W−1, C) in float32 or wider.
    """
    (rows, tokens, channels), width = x_BTC.shape, weight_CW.shape[1]
    if window_BWC is None:
        padded_BSC = F.pad(x_BTC, (0, 0, width - 1, 0))
    else:
        padded_BSC = torch.cat([window_BWC.to(x_BTC.dtype), x_BTC], dim=1)
    # Shifted sums beat a grouped convolution on a CPU and need no change of layout.
    y_BTC, weight_CW = bias_C.to(x_BTC.dtype), weight_CW.to(x_BTC.dtype)
    for tap in range(width):
        y_BTC = torch.addcmul(y_BTC, padded_BSC[:, tap : tap + tokens], weight_CW[:, tap])
    if valid_B is None:
        next_BWC = padded_BSC[:, tokens:]
    else:
        slots_BW = valid_B[:, None] + torch.arange(width - 1, device=x_BTC.device)
        next_BWC = padded_BSC.gather(1, slots_BW[:, :, None].expand(rows, width - 1, channels))
    if next_BWC.dtype.itemsize < 4:
        next_BWC = next_BWC.float()
    return F.silu(y_BTC), next_BWC
