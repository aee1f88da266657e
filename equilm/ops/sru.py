"""The recurrence of SRU: a gate that sees the cell it forgets, channel by channel.

Read `equilm/nn/sru.py` next.
"""

import torch
from torch import Tensor


def peephole_recurrence(
    input_BTI: Tensor, forget_BTI: Tensor, peep_I: Tensor, cell_BI: Tensor
) -> Tensor:
    """f_t = σ(forget_t + peep · c_{t−1}),   c_t = f_t c_{t−1} + (1 − f_t) input_t.

    Args:
        input_BTI: (B, T, I).
        forget_BTI: (B, T, I) the gate's part that does not look back; ∞ keeps the cell.
        peep_I: (I,).
        cell_BI: (B, I) before the first token.

    Returns:
        c_BTI before each token and, behind them, the last: (B, T + 1, I).

    Source: Lei et al. 2018, arXiv 1709.02755, equations 1 and 2.
    """
    cells = [cell_BI]
    for input_BI, forget_BI in zip(input_BTI.unbind(1), forget_BTI.unbind(1), strict=True):
        gate_BI = torch.sigmoid(torch.addcmul(forget_BI, peep_I, cells[-1]))
        cells.append(torch.lerp(input_BI, cells[-1], gate_BI))
    return torch.stack(cells, dim=1)
