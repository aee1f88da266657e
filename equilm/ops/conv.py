"""Causal depthwise convolution with a carried window, then SiLU.

Read `gated_scan.py` next.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_TAPS = 4  # of the Triton kernels
MAX_SUMMED = 8  # taps that are shifted and summed one by one


def conv_silu(
    x_BTC: Tensor,
    weight_CW: Tensor,
    bias_C: Tensor,
    window_BWC: Tensor | None = None,
    *,
    add_BTC: Tensor | None = None,
    valid_B: Tensor | None = None,
    starts_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y_t = SiLU(bias + Σ_w weight_w · (x + add)_{t−W+1+w}) per channel.

    Args:
        x_BTC: (B, T, C) inputs.
        weight_CW: (C, W) taps, the last one multiplies the newest input.
        bias_C: (C,).
        window_BWC: (B, W−1, C) the inputs before x; `None` means zeros.
        add_BTC: (B, T, C) added to x (the injection of an equilibrium).
        valid_B: (B,) how many tokens of each row count for the window returned; `None` means T.
        starts_BT: (B, T) bool: tokens before which all inputs count as zeros, as if nothing had
            been.

    Returns:
        y_BTC in the type of `x_BTC`, and the next window (B, W−1, C) in float32 or wider.
    """
    if x_BTC.is_cuda and x_BTC.dtype != torch.float64 and weight_CW.shape[1] <= MAX_TAPS:
        from equilm.ops.conv_triton import ConvSilu

        return ConvSilu.apply(x_BTC, add_BTC, weight_CW, bias_C, window_BWC, valid_B, starts_BT)
    if add_BTC is not None:
        x_BTC = x_BTC + add_BTC.to(x_BTC.dtype)
    y_BTC, next_BWC = conv(x_BTC, weight_CW, bias_C, window_BWC, valid_B, starts_BT)
    return F.silu(y_BTC), next_BWC


def conv(
    x_BTC: Tensor,
    weight_CW: Tensor,
    bias_C: Tensor,
    window_BWC: Tensor | None = None,
    valid_B: Tensor | None = None,
    starts_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y_t = bias + Σ_w weight_w · x_{t−W+1+w} per channel; arguments and results as `conv_silu`."""
    tokens, width = x_BTC.shape[1], weight_CW.shape[1]
    if window_BWC is None:
        padded_BSC = F.pad(x_BTC, (0, 0, width - 1, 0))
    else:
        padded_BSC = torch.cat([window_BWC.to(x_BTC.dtype), x_BTC], dim=1)
    # Shifted sums of few taps beat a grouped convolution on a CPU, and need no change of layout.
    y_BTC, weight_CW = bias_C.to(x_BTC.dtype), weight_CW.to(x_BTC.dtype)
    if width > MAX_SUMMED and starts_BT is None:
        y_BCT = F.conv1d(padded_BSC.mT, weight_CW[:, None], y_BTC, groups=len(weight_CW))
        return y_BCT.mT, _widened(last(padded_BSC, tokens, width, valid_B))
    number_BS = None if starts_BT is None else F.pad(starts_BT.cumsum(1), (width - 1, 0))
    for tap in range(width):
        shifted_BTC = padded_BSC[:, tap : tap + tokens]
        if number_BS is not None:
            same_BT = number_BS[:, tap : tap + tokens] == number_BS[:, width - 1 :]
            shifted_BTC = shifted_BTC.where(same_BT[..., None], 0)
        y_BTC = torch.addcmul(y_BTC, shifted_BTC, weight_CW[:, tap])
    next_BWC = last(padded_BSC, tokens, width, valid_B)
    if number_BS is not None and width > 1:
        number_BW = last(number_BS[..., None], tokens, width, valid_B)
        next_BWC = next_BWC.where(number_BW == number_BW[:, -1:], 0)
    return y_BTC, _widened(next_BWC)


def last(padded_BSC: Tensor, tokens: int, width: int, valid_B: Tensor | None) -> Tensor:
    """Return the W − 1 inputs before position `valid` of T, or the last, of all W − 1 + T."""
    if valid_B is None:
        next_BWC = padded_BSC[:, tokens:]
    else:
        slots_BW = valid_B[:, None] + torch.arange(width - 1, device=valid_B.device)
        index_BWC = slots_BW[:, :, None].expand(*slots_BW.shape, padded_BSC.shape[2])
        next_BWC = padded_BSC.gather(1, index_BWC)
    return next_BWC


def _widened(window_BWC: Tensor) -> Tensor:
    return window_BWC.float() if window_BWC.dtype.itemsize < 4 else window_BWC
