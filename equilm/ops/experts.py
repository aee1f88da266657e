"""A sum of gated MLPs, each weighed by its share of a token, most shares being zero.

    y = Σ_e share_e · w2_e(SiLU(w1_e a) · (w3_e a))

Two views with one meaning: `by_choice` computes the experts that a token has chosen and lets the
host know which, `by_all` computes all of them in shapes that do not depend on the numbers. Read
`equilm/nn/experts.py` next.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def experts(
    a_RD: Tensor, share_RY: Tensor, w1_YUD: Tensor, w3_YUD: Tensor, w2_YDU: Tensor
) -> Tensor:
    """y = Σ_e share_e · w2_e(SiLU(w1_e a) · (w3_e a)).

    Args:
        a_RD: (R, D) tokens.
        share_RY: (R, Y) of each of the Y experts, zero where it is not chosen.
        w1_YUD: (Y, U, D) as do w3.
        w3_YUD: (Y, U, D).
        w2_YDU: (Y, D, U).

    Returns:
        y_RD in the type of the weights.

    Source: Shazeer et al. 2017, arXiv 1701.06538, without a capacity: no token is dropped.
    """
    # On a GPU the host would wait for the choices, which no graph could record.
    view = by_all if a_RD.is_cuda else by_choice
    return view(a_RD, share_RY, w1_YUD, w3_YUD, w2_YDU)


def by_choice(
    a_RD: Tensor, share_RY: Tensor, w1_YUD: Tensor, w3_YUD: Tensor, w2_YDU: Tensor
) -> Tensor:
    """`experts`, one after the other, each for the tokens that chose it."""
    a_RD = a_RD.to(w1_YUD.dtype)
    y_RD = torch.zeros_like(a_RD)
    for number, (w1_UD, w3_UD, w2_DU) in enumerate(zip(w1_YUD, w3_YUD, w2_YDU, strict=True)):
        rows = share_RY[:, number].nonzero()[:, 0]
        if len(rows):
            here_ND = a_RD[rows]
            hidden_NU = F.silu(F.linear(here_ND, w1_UD)) * F.linear(here_ND, w3_UD)
            hidden_NU = hidden_NU * share_RY[rows, number, None].to(hidden_NU.dtype)
            y_RD = y_RD.index_add(0, rows, F.linear(hidden_NU, w2_DU))
    return y_RD


def by_all(
    a_RD: Tensor, share_RY: Tensor, w1_YUD: Tensor, w3_YUD: Tensor, w2_YDU: Tensor
) -> Tensor:
    """`experts`, as one gated MLP of all of them, whose hidden numbers are weighed."""
    a_RD = a_RD.to(w1_YUD.dtype)
    up_RI, gate_RI = (F.linear(a_RD, weight.flatten(0, 1)) for weight in (w1_YUD, w3_YUD))
    hidden_RYU = (F.silu(up_RI) * gate_RI).unflatten(-1, w1_YUD.shape[:2])
    hidden_RYU = hidden_RYU * share_RY[..., None].to(hidden_RYU.dtype)
    return F.linear(hidden_RYU.flatten(1), w2_YDU.transpose(0, 1).flatten(1))
