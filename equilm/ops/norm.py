"""RMS norm and gated RMS norm, computed in float32. Read `equilm/nn/block.py` next."""

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x_BTD: Tensor, weight_D: Tensor, *, eps: float = 1e-5) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension.

    Args:
        x_BTD: (..., D), any float type.
        weight_D: (D,).
        eps: Added to the mean square; 1e-5 as in the published models.

    Returns:
        (..., D) in float32 or wider.

    Source: Zhang and Sennrich 2019, arXiv 1910.07467.
    """
    if x_BTD.dtype.itemsize < 4:
        x_BTD = x_BTD.float()
    return F.rms_norm(x_BTD, weight_D.shape, weight_D.to(x_BTD.dtype), eps)


def gated_rms_norm(
    y_BTD: Tensor, gate_BTD: Tensor, weight_D: Tensor, *, groups: int = 1, eps: float = 1e-5
) -> Tensor:
    """RMSNorm(y · SiLU(gate)) · weight over each of `groups` equal parts of the last dimension.

    Args:
        y_BTD: (..., D), output of the scan.
        gate_BTD: (..., D).
        weight_D: (D,).
        groups: G, a divisor of D; as many as Mamba2 has sets of input and output directions.
        eps: Added to the mean square.

    Returns:
        (..., D) in float32 or wider.

    Source: Dao and Gu 2024, arXiv 2405.21060, section 7 (norm after the gate), and its code.
    """
    if y_BTD.dtype.itemsize < 4:
        y_BTD = y_BTD.float()
    y_BTD = y_BTD * F.silu(gate_BTD.to(y_BTD.dtype))
    part_BTGD = y_BTD.unflatten(-1, (groups, -1))
    part_BTGD = F.rms_norm(part_BTGD, part_BTGD.shape[-1:], eps=eps)
    return part_BTGD.flatten(-2) * weight_D.to(y_BTD.dtype)
