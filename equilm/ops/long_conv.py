"""A causal convolution with a kernel as long as it likes, and the inputs before. By FFT or by sums.

Read `equilm/nn/hyena.py` next.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.ops.fftconv import fft_conv

LONG = 32  # tokens from which a transform is faster, as in `diagonal.py`


def long_conv(u_BTI: Tensor, kernel_IL: Tensor, past_BSI: Tensor | None = None) -> Tensor:
    """y_t = Σ_{s < L} K_s u_{t−s} per channel.

    Args:
        u_BTI: (B, T, I) real.
        kernel_IL: (I, L) real.
        past_BSI: (B, L − 1, I) the inputs before; `None` means zeros.

    Returns:
        y_BTI.
    """
    tokens = u_BTI.shape[1]
    if past_BSI is None:
        kernel_IL = kernel_IL[:, :tokens]
    taps = kernel_IL.shape[1]
    if past_BSI is None and tokens >= LONG:
        return fft_conv(u_BTI, kernel_IL)
    if past_BSI is None:
        past_BSI = F.pad(u_BTI[:, :0], (0, 0, taps - 1, 0))
    padded_BSI = torch.cat([past_BSI, u_BTI], dim=1)
    if tokens >= LONG:
        return fft_conv(padded_BSI, kernel_IL)[:, taps - 1 :]
    reversed_LI = kernel_IL.flip(1).mT
    sums = [(padded_BSI[:, t : t + taps] * reversed_LI).sum(1) for t in range(tokens)]
    return torch.stack(sums, dim=1)
