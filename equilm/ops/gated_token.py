"""`gated_scan` for one token a row, in fewer passes: what a CPU spends its time on there.

    y = RMSNorm((x (dt (b · c) + skip) + exp(dt a) S c) · SiLU(gate)) · norm
    S' = exp(dt a) S + dt x ⊗ b

The output is read from the state before, so that who does not want the next state does not pay for
it. Plain PyTorch; `gated_scan.py` is its twin, `token_triton.py` the whole layer on a GPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.ops.gated_scan import Weights
from equilm.ops.norm import gated_rms_norm


def gated_token(
    proj_BE: Tensor,
    inject_BE: Tensor | None,
    weights: Weights,
    window_BWC: Tensor,
    scan_BHPN: Tensor,
    *,
    groups: int,
    eps: float = 1e-5,
    advance: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y = RMSNorm(scan(conv(xBC), dt) · SiLU(gate)) with [gate | xBC | dt] = proj + inject.

    Args:
        proj_BE: (B, I + C + H) in float32 or wider.
        inject_BE: (B, I + C + H) added to it, or nothing.
        weights: As for `gated_scan`.
        window_BWC: (B, W−1, C) the convolution's inputs before.
        scan_BHPN: (B, H, P, N) state before, I = H · P.
        groups: G.
        eps: Added to the mean square.
        advance: Whether the next window and state are wanted.

    Returns:
        y_BI, the next window and the next state, the two `None` unless wanted.
    """
    if inject_BE is not None:
        proj_BE = proj_BE + inject_BE
    heads, directions = scan_BHPN.shape[1], scan_BHPN.shape[3]
    sizes = [len(weights.norm_I), len(weights.taps_CW), heads]
    gate_BI, new_BC, dt_BH = proj_BE.split(sizes, dim=-1)
    inputs_BC = [*window_BWC.unbind(1), new_BC]
    mixed_BC = weights.taps_bias_C
    for input_BC, tap_C in zip(inputs_BC, weights.taps_CW.unbind(1), strict=True):
        mixed_BC = torch.addcmul(mixed_BC, input_BC, tap_C)
    parts = [sizes[0], groups * directions, groups * directions]
    x_BI, b_BS, c_BS = F.silu(mixed_BC).split(parts, dim=-1)
    x_BHP = x_BI.unflatten(-1, (heads, -1))
    dt_BH = F.softplus(dt_BH + weights.dt_bias_H)
    decay_BH = torch.exp(dt_BH * -torch.exp(weights.a_log_H))
    b_BGN, c_BGN = (part.unflatten(-1, (groups, -1)) for part in (b_BS, c_BS))
    y_BHP = _read(x_BHP, dt_BH, decay_BH, b_BGN, c_BGN, weights.skip_H, scan_BHPN)
    y_BI = gated_rms_norm(y_BHP.flatten(1), gate_BI, weights.norm_I, groups=groups, eps=eps)
    if not advance:
        return y_BI, None, None
    b_BH1N = b_BGN.repeat_interleave(heads // groups, dim=1)[:, :, None]
    added_BHPN = (x_BHP * dt_BH[..., None])[..., None] * b_BH1N
    scan_BHPN = torch.addcmul(added_BHPN, scan_BHPN, decay_BH[..., None, None])
    next_BWC = torch.cat([window_BWC, new_BC[:, None]], dim=1)[:, 1:]
    return y_BI, next_BWC, scan_BHPN


def _read(
    x_BHP: Tensor,
    dt_BH: Tensor,
    decay_BH: Tensor,
    b_BGN: Tensor,
    c_BGN: Tensor,
    skip_H: Tensor,
    scan_BHPN: Tensor,
) -> Tensor:
    """S' c + skip x, without S'."""
    groups, heads = b_BGN.shape[1], x_BHP.shape[1]
    overlap_BH = (b_BGN * c_BGN).sum(-1).repeat_interleave(heads // groups, dim=1)
    gain_BH1 = (dt_BH * overlap_BH + skip_H)[..., None]
    # Heads of a group are read in one product, by a row: by a column takes three times as long.
    joined_BGIN = scan_BHPN.unflatten(1, (groups, -1)).flatten(2, 3)
    read_BHP = (c_BGN[:, :, None] @ joined_BGIN.mT).view_as(x_BHP)
    return torch.addcmul(x_BHP * gain_BH1, read_BHP, decay_BH[..., None])
