"""Mamba2 between its two projections: convolve, scan, gate, normalise; one operation on a GPU.

    [gate | xBC | dt] = proj + inject
    x, b, c = SiLU(conv(xBC)),  dt = softplus(dt + dt_bias),  a = −exp(a_log)
    y = RMSNorm(ssd(x, dt, a, b, c) · SiLU(gate)) · norm

This is the composition of `conv.py`, `scan.py` and `norm.py`, and the twin of
`gated_scan_triton.py`, which keeps only its arguments for the backward pass. Read
`equilm/nn/mamba2.py` next.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.ops.conv import MAX_TAPS, conv_silu
from equilm.ops.norm import gated_rms_norm
from equilm.ops.scan import ssd
from equilm.ops.signed_scan import ssd_signed

MAX_HEAD_WIDTH = 64  # of the Triton kernels


class Weights(NamedTuple):
    """What Mamba2 learns between its projections; C = I + 2 G N."""

    taps_CW: Tensor
    taps_bias_C: Tensor
    dt_bias_H: Tensor
    a_log_H: Tensor
    skip_H: Tensor
    norm_I: Tensor


def gated_scan(
    proj_BTE: Tensor,
    inject_BTE: Tensor | None,
    weights: Weights,
    window_BWC: Tensor | None = None,
    scan_BHPN: Tensor | None = None,
    *,
    groups: int,
    eps: float = 1e-5,
    signed: bool = False,
    valid_B: Tensor | None = None,
    starts_BT: Tensor | None = None,
    dtype: torch.dtype | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y = RMSNorm(scan(conv(xBC), dt) · SiLU(gate)) with [gate | xBC | dt] = proj + inject.

    Args:
        proj_BTE: (B, T, I + C + H), T ≥ 1.
        inject_BTE: (B, T, I + C + H) added to it (the injection of an equilibrium), or nothing.
        weights: The learned vectors.
        window_BWC: (B, W−1, C) the convolution's inputs before; `None` means zeros.
        scan_BHPN: (B, H, P, N) state before, I = H · P; `None` means zeros.
        groups: G, sets of input and output directions, and parts of the norm.
        eps: Added to the mean square.
        signed: Whether decays lie in [−1, 1] (`signed_scan.py`) instead of [0, 1].
        valid_B: (B,) how many tokens of each row count for the states returned; `None` means T.
        starts_BT: (B, T) bool: tokens that begin anew, with a window and a state of zeros.
        dtype: Of y; `None` means float32 or wider.
        scale: () divides y, which then comes in e4m3; no gradients.

    Returns:
        y_BTI, the next window and the next state of the scan, both in float32 or wider.

    Source: Dao and Gu 2024, arXiv 2405.21060; injection as in arXiv 2502.07827.
    """
    if starts_BT is not None and valid_B is not None:
        # What is padding must not empty the state.
        starts_BT = starts_BT & _within(starts_BT, valid_B)
    if not signed and _fits_kernels(proj_BTE, weights):
        from equilm.ops.gated_scan_triton import GatedScan

        return GatedScan.apply(
            proj_BTE,
            inject_BTE,
            *weights,
            window_BWC,
            scan_BHPN,
            groups,
            eps,
            valid_B,
            starts_BT,
            dtype,
            scale,
        )
    channels, heads, inner = len(weights.taps_CW), len(weights.a_log_H), len(weights.norm_I)
    sizes = [inner, channels, heads]
    gate_BTI, xbc_BTC, dt_BTH = proj_BTE.split(sizes, dim=-1)
    # The injection is added where its parts are read, not in a pass of its own.
    add_BTI, add_BTC, add_BTH = (
        (None, None, None) if inject_BTE is None else inject_BTE.split(sizes, dim=-1)
    )
    xbc_BTC, window_BWC = conv_silu(
        xbc_BTC,
        weights.taps_CW,
        weights.taps_bias_C,
        window_BWC,
        add_BTC=add_BTC,
        valid_B=valid_B,
        starts_BT=starts_BT,
    )
    directions = (channels - inner) // 2
    x_BTI, b_BTS, c_BTS = xbc_BTC.split([inner, directions, directions], dim=-1)
    dt_BTH, a_H = _steps(dt_BTH, add_BTH, weights, valid_B)
    scan = ssd_signed if signed else ssd
    y_BTHP, scan_BHPN = scan(
        x_BTI.unflatten(-1, (heads, -1)),
        dt_BTH,
        a_H,
        b_BTS.unflatten(-1, (groups, -1)),
        c_BTS.unflatten(-1, (groups, -1)),
        weights.skip_H,
        scan_BHPN,
        starts_BT,
    )
    y_BTI = gated_rms_norm(
        y_BTHP.flatten(2),
        gate_BTI,
        weights.norm_I,
        add_BTD=add_BTI,
        groups=groups,
        eps=eps,
        dtype=dtype,
        scale=scale,
    )
    return y_BTI, window_BWC, scan_BHPN


def _fits_kernels(proj_BTE: Tensor, weights: Weights) -> bool:
    """One token is cheaper by the parts."""
    return (
        proj_BTE.is_cuda
        and proj_BTE.dtype != torch.float64
        and proj_BTE.shape[1] > 1
        and weights.taps_CW.shape[1] <= MAX_TAPS
        and len(weights.norm_I) // len(weights.a_log_H) <= MAX_HEAD_WIDTH
    )


def _steps(
    dt_BTH: Tensor, add_BTH: Tensor | None, weights: Weights, valid_B: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The step sizes, zero behind `valid`, and the decay rates."""
    wide = torch.promote_types(weights.a_log_H.dtype, torch.float32)
    dt_BTH = dt_BTH.to(wide) if add_BTH is None else dt_BTH.to(wide) + add_BTH
    dt_BTH = F.softplus(dt_BTH + weights.dt_bias_H)
    if valid_B is not None:
        dt_BTH = dt_BTH * _within(dt_BTH, valid_B)[..., None]
    return dt_BTH, -torch.exp(weights.a_log_H.to(wide))


def _within(any_BT: Tensor, valid_B: Tensor) -> Tensor:
    return torch.arange(any_BT.shape[1], device=valid_B.device) < valid_B[:, None]
