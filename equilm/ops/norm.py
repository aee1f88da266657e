"""RMS norms, computed in float32: plain, of a sum, and gated. Read `equilm/nn/block.py` next."""

import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.ops.fp8 import to_e4m3


def add_rms_norm(
    r_BTD: Tensor,
    y_BTD: Tensor | None,
    weight_D: Tensor,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """r + y, and (r + y) / sqrt(mean((r + y)²) + eps) · weight over the last dimension.

    Args:
        r_BTD: (..., D) a residual stream.
        y_BTD: (..., D) what is added to it, any float type; `None` adds nothing.
        weight_D: (D,).
        eps: Added to the mean square; 1e-5 as in the published models.
        dtype: Of the second result; `None` means float32 or wider.
        scale: () divides the second result, which then comes in e4m3; no gradients.

    Returns:
        The sum in float32 or wider (on a GPU with a scale, in `dtype`), and its norm.

    Source: Zhang and Sennrich 2019, arXiv 1910.07467. On a GPU: `norm_triton.py`.
    """
    if r_BTD.dtype.itemsize < 4 and (y_BTD is None or not r_BTD.is_cuda):
        r_BTD = r_BTD.float()
    if r_BTD.is_cuda and r_BTD.dtype != torch.float64:
        from equilm.ops.norm_triton import AddNorm

        return AddNorm.apply(r_BTD, y_BTD, weight_D, eps, dtype or torch.float32, scale)
    if y_BTD is not None:
        r_BTD = r_BTD + y_BTD
    normed_BTD = F.rms_norm(r_BTD, weight_D.shape, weight_D.to(r_BTD.dtype), eps)
    return r_BTD, _cast(normed_BTD, dtype, scale)


def gated_rms_norm(
    y_BTD: Tensor,
    gate_BTD: Tensor,
    weight_D: Tensor,
    *,
    add_BTD: Tensor | None = None,
    groups: int = 1,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """RMSNorm(y · SiLU(gate + add)) · weight over each of `groups` equal parts.

    Args:
        y_BTD: (..., D), output of the scan.
        gate_BTD: (..., D).
        weight_D: (D,).
        add_BTD: (..., D) added to the gate (the injection of an equilibrium).
        groups: G, a divisor of D; as many as Mamba2 has sets of input and output directions.
        eps: Added to the mean square.
        dtype: Of the result; `None` means float32 or wider.
        scale: () divides the result, which then comes in e4m3; no gradients.

    Returns:
        (..., D).

    Source: Dao and Gu 2024, arXiv 2405.21060, section 7 (norm after the gate), and its code. On a
    GPU: `norm_triton.py`.
    """
    if y_BTD.is_cuda and y_BTD.dtype != torch.float64:
        from equilm.ops.norm_triton import GatedNorm

        return GatedNorm.apply(
            y_BTD, gate_BTD, add_BTD, weight_D, groups, eps, dtype or torch.float32, scale
        )
    if y_BTD.dtype.itemsize < 4:
        y_BTD = y_BTD.float()
    gate_BTD = gate_BTD.to(y_BTD.dtype)
    if add_BTD is not None:
        gate_BTD = gate_BTD + add_BTD
    y_BTD = y_BTD * F.silu(gate_BTD)
    part_BTGD = y_BTD.unflatten(-1, (groups, -1))
    part_BTGD = F.rms_norm(part_BTGD, part_BTGD.shape[-1:], eps=eps)
    normed_BTD = part_BTGD.flatten(-2) * weight_D.to(y_BTD.dtype)
    return _cast(normed_BTD, dtype, scale)


def _cast(normed_BTD: Tensor, dtype: torch.dtype | None, scale: Tensor | None) -> Tensor:
    if scale is not None:
        return to_e4m3(normed_BTD, scale)
    return normed_BTD if dtype is None else normed_BTD.to(dtype)
