"""The selective scan of S6 (Mamba): every channel has its own step and N decays, real or complex.

    h_t = exp(dt_t a) h_{t−1} + dt_t x_t b_t,   y_t = c_t · h_t + skip x_t      per channel

A token with dt = 0 leaves the state untouched, which is how padding is skipped. The kernels of
`selective_triton.py` know real decays. Read `equilm/nn/s6.py` next.
"""

import torch
from torch import Tensor

from equilm.ops.recurrence import recurrence

# N of the Triton kernels, which keep a channel's state in registers. The backward pass needs the
# bound too: a program's tile is 256 numbers, and N = 256 leaves one channel, so that its tl.dot
# would sum 8 products, where bfloat16 does not compile with fewer than 16.
MAX_KERNEL_STATE = 64
CHUNK = 64  # tokens whose states (B, CHUNK, I, N) are there at once, without a gradient


def selective_scan(
    x_BTI: Tensor,
    dt_BTI: Tensor,
    a_IN: Tensor,
    b_BTN: Tensor,
    c_BTN: Tensor,
    skip_I: Tensor,
    state_BIN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """h_t = exp(dt_t a) h_{t−1} + dt_t x_t b_t;  y_t = c_t · h_t + skip x_t.

    Args:
        x_BTI: (B, T, I) real values, T ≥ 1.
        dt_BTI: (B, T, I) step sizes ≥ 0.
        a_IN: (I, N) decay rates of negative real part; complex ones stand for conjugate pairs,
            so that c · h is twice its real part.
        b_BTN: (B, T, N) input directions, complex if a is.
        c_BTN: (B, T, N) output directions, complex if a is.
        skip_I: (I,) weight of the direct path.
        state_BIN: (B, I, N) initial state; `None` means zeros.

    Returns:
        y_BTI in float32 or wider (from the kernels, in the type of x), and the final state
        (B, I, N) in float32 or wider.

    Source: Gu and Dao 2023, arXiv 2312.00752, algorithm 2. Kernels: `selective_triton.py`.
    """
    if _fits_kernels(x_BTI, a_IN):
        from equilm.ops.selective_triton import SelectiveScan

        return SelectiveScan.apply(x_BTI, dt_BTI, a_IN, b_BTN, c_BTN, skip_I, state_BIN)
    with torch.autocast(x_BTI.device.type, enabled=False):
        return selective_scan_chunked(x_BTI, dt_BTI, a_IN, b_BTN, c_BTN, skip_I, state_BIN)


def selective_scan_chunked(
    x_BTI: Tensor,
    dt_BTI: Tensor,
    a_IN: Tensor,
    b_BTN: Tensor,
    c_BTN: Tensor,
    skip_I: Tensor,
    state_BIN: Tensor | None = None,
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """`selective_scan` in PyTorch: a parallel scan inside chunks, one after the other."""
    x_BTI, dt_BTI = (t.float() if t.dtype.itemsize < 4 else t for t in (x_BTI, dt_BTI))
    b_BTN, c_BTN = b_BTN.to(a_IN.dtype), c_BTN.to(a_IN.dtype)
    y = []
    for x_BLI, dt_BLI, b_BLN, c_BLN in zip(
        *(tensor.split(chunk, dim=1) for tensor in (x_BTI, dt_BTI, b_BTN, c_BTN)), strict=True
    ):
        decay_BLIN = torch.exp(dt_BLI[..., None] * a_IN)
        inputs_BLIN = (dt_BLI * x_BLI)[..., None] * b_BLN[:, :, None]
        h_BLIN, state_BIN = recurrence(decay_BLIN, inputs_BLIN, state_BIN)
        y_BLI = (h_BLIN @ c_BLN[..., None])[..., 0]
        y.append(2 * y_BLI.real if a_IN.is_complex() else y_BLI)
    assert state_BIN is not None
    return torch.cat(y, dim=1) + skip_I * x_BTI, state_BIN


def _fits_kernels(x_BTI: Tensor, a_IN: Tensor) -> bool:
    wide = torch.float64 in (x_BTI.dtype, a_IN.dtype)
    fits = not (wide or a_IN.is_complex()) and a_IN.shape[1] <= MAX_KERNEL_STATE
    return x_BTI.is_cuda and fits
