"""A long causal convolution by FFT. Read `diagonal.py` next."""

import torch
from torch import Tensor


def fft_conv(u_BTI: Tensor, kernel_IT: Tensor) -> Tensor:
    """y_t = Σ_{s ≤ t} K_{t−s} u_s per channel.

    Args:
        u_BTI: (B, T, I) real.
        kernel_IT: (I, T) real, the response to one input.

    Returns:
        y_BTI.
    """
    tokens = u_BTI.shape[1]
    # Twice as long, so that the end does not come round to the beginning.
    size = 1 << (2 * tokens - 1).bit_length()
    product_BFI = torch.fft.rfft(u_BTI, size, dim=1) * torch.fft.rfft(kernel_IT, size).mT
    return torch.fft.irfft(product_BFI, size, dim=1)[:, :tokens]
