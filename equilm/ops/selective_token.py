"""`selective_scan` for one token a row, from the steps before softplus to the gated output.

    dt = softplus(step),   h' = exp(dt a) h + dt x b,   y = (c · h' + skip x) SiLU(gate)

One pass over the state, which is all that generation waits for there. Plain PyTorch, and the twin
of the kernel in `selective_token_triton.py`; `selective.py` is the meaning. Real decays only.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_token(
    x_BI: Tensor,
    step_BI: Tensor,
    a_log_IN: Tensor,
    b_BN: Tensor,
    c_BN: Tensor,
    skip_I: Tensor,
    gate_BI: Tensor,
    state_BIN: Tensor,
) -> tuple[Tensor, Tensor]:
    """h' = exp(dt a) h + dt x b;  y = (c · h' + skip x) SiLU(gate), dt = softplus(step).

    Args:
        x_BI: (B, I) values.
        step_BI: (B, I) steps before softplus.
        a_log_IN: (I, N) the decay rates, log(−a).
        b_BN: (B, N) input directions.
        c_BN: (B, N) output directions.
        skip_I: (I,) weight of the direct path.
        gate_BI: (B, I) before SiLU.
        state_BIN: (B, I, N) the state before, in float32 or wider.

    Returns:
        y_BI in the type of the gate, and the next state.

    Source: Gu and Dao 2023, arXiv 2312.00752, section 3.3. Kernel: `selective_token_triton.py`.
    """
    given = (x_BI, step_BI, a_log_IN, b_BN, c_BN, skip_I, gate_BI, state_BIN)
    if _fits_kernel(*given):
        from equilm.ops.selective_token_triton import selective_token_kernel

        return selective_token_kernel(*given)
    with torch.autocast(x_BI.device.type, enabled=False):
        return selective_token_plain(*given)


def selective_token_plain(
    x_BI: Tensor,
    step_BI: Tensor,
    a_log_IN: Tensor,
    b_BN: Tensor,
    c_BN: Tensor,
    skip_I: Tensor,
    gate_BI: Tensor,
    state_BIN: Tensor,
) -> tuple[Tensor, Tensor]:
    """`selective_token` in PyTorch."""
    wide = state_BIN.dtype
    x_BI, b_BN, c_BN = (tensor.to(wide) for tensor in (x_BI, b_BN, c_BN))
    dt_BI = F.softplus(step_BI.to(wide))
    decay_BIN = torch.exp(dt_BI[..., None] * -torch.exp(a_log_IN.to(wide)))
    added_BIN = (dt_BI * x_BI)[..., None] * b_BN[:, None]
    state_BIN = torch.addcmul(added_BIN, decay_BIN, state_BIN)
    y_BI = (state_BIN @ c_BN[..., None])[..., 0] + skip_I.to(wide) * x_BI
    return (y_BI * F.silu(gate_BI.to(wide))).to(gate_BI.dtype), state_BIN


def _fits_kernel(*given: Tensor) -> bool:
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    wide = any(tensor.dtype == torch.float64 for tensor in given)
    return given[0].is_cuda and not (wanted or wide)
