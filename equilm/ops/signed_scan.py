"""The selective scan of Mamba2 with eigenvalues in [−1, 1] instead of [0, 1].

    S_t = d_t S_{t−1} + dt_t · x_t ⊗ b_t,   d_t = 2 exp(dt_t · a) − 1,   y_t = S_t c_t + skip · x_t

A state that can change its sign can count modulo two. With σ_t the product of all signs so far,
σ_t S_t is a scan with the decays |d_t|, and that is what `scan.py` and its kernels compute. Read
`gated_scan.py` next.
"""

import torch
from torch import Tensor

from equilm.ops.scan import ssd

LEAST = 1e-20  # of |d|: a scan takes the logarithm


def ssd_signed(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTGN: Tensor,
    c_BTGN: Tensor,
    skip_H: Tensor,
    state_BHPN: Tensor | None = None,
    starts_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S_t = (2 exp(dt_t a) − 1) S_{t−1} + dt_t x_t ⊗ b_t;  y_t = S_t c_t + skip x_t.

    Arguments and results are those of `ssd`; a token with dt = 0 leaves the state untouched.

    Source: Grazzi et al. 2024, arXiv 2411.12537.
    """
    wide = torch.promote_types(x_BTHP.dtype, torch.float32)
    change_BTH = 2 * torch.expm1(dt_BTH * a_H)
    sign_BTH = torch.where(change_BTH < -1, -1, 1).cumprod(dim=1)
    # For the scan a step is −log|d| at the rate −1; inputs keep their own step.
    step_BTH = -torch.where(
        change_BTH > -0.5,
        change_BTH.clamp(min=-0.5).log1p(),
        (1 + change_BTH).abs().clamp(min=LEAST).log(),
    )
    moves_BTH = step_BTH > 0
    share_BTH = torch.where(moves_BTH, dt_BTH / step_BTH.where(moves_BTH, 1), -0.5 / a_H)
    # Of the type of x, as b and c are: the kernels multiply them with each other.
    inputs_BTHP = (x_BTHP.to(wide) * (share_BTH * sign_BTH)[..., None]).to(x_BTHP.dtype)
    y_BTHP, state_BHPN = ssd(
        inputs_BTHP,
        step_BTH,
        -torch.ones_like(a_H),
        b_BTGN,
        c_BTGN,
        torch.zeros_like(skip_H),
        state_BHPN,
        starts_BT,
    )
    y_BTHP = y_BTHP * sign_BTH[..., None] + x_BTHP.to(wide) * skip_H[:, None]
    return y_BTHP.to(x_BTHP.dtype), state_BHPN * sign_BTH[:, -1, :, None, None]
