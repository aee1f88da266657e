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
    a_RD: Tensor, share_RJ: Tensor, w1_JUD: Tensor, w3_JUD: Tensor, w2_JDU: Tensor
) -> Tensor:
    """y = Σ_e share_e · w2_e(SiLU(w1_e a) · (w3_e a)).

    Args:
        a_RD: (R, D) tokens.
        share_RJ: (R, J) of each of the J experts, zero where it is not chosen.
        w1_JUD: (J, U, D) as do w3.
        w3_JUD: (J, U, D).
        w2_JDU: (J, D, U).

    Returns:
        y_RD in the type of the weights.

    Source: Shazeer et al. 2017, arXiv 1701.06538, without a capacity: no token is dropped.
    """
    # On a GPU the host would wait for the choices, which no graph could record.
    view = by_all if a_RD.is_cuda else by_choice
    return view(a_RD, share_RJ, w1_JUD, w3_JUD, w2_JDU)


def by_choice(
    a_RD: Tensor, share_RJ: Tensor, w1_JUD: Tensor, w3_JUD: Tensor, w2_JDU: Tensor
) -> Tensor:
    """`experts`, one after the other, each for the tokens that chose it."""
    a_RD = a_RD.to(w1_JUD.dtype)
    y_RD = torch.zeros_like(a_RD)
    for number, (w1_UD, w3_UD, w2_DU) in enumerate(zip(w1_JUD, w3_JUD, w2_JDU, strict=True)):
        rows = share_RJ[:, number].nonzero()[:, 0]
        if len(rows):
            here_ND = a_RD[rows]
            hidden_NU = F.silu(F.linear(here_ND, w1_UD)) * F.linear(here_ND, w3_UD)
            hidden_NU = hidden_NU * share_RJ[rows, number, None].to(hidden_NU.dtype)
            y_RD = y_RD.index_add(0, rows, F.linear(hidden_NU, w2_DU))
    return y_RD


def by_all(
    a_RD: Tensor, share_RJ: Tensor, w1_JUD: Tensor, w3_JUD: Tensor, w2_JDU: Tensor
) -> Tensor:
    """`experts`, as one gated MLP of all of them, whose hidden numbers are weighed."""
    a_RD = a_RD.to(w1_JUD.dtype)
    up_RI, gate_RI = (F.linear(a_RD, weight.flatten(0, 1)) for weight in (w1_JUD, w3_JUD))
    hidden_RJU = (F.silu(up_RI) * gate_RI).unflatten(-1, w1_JUD.shape[:2])
    hidden_RJU = hidden_RJU * share_RJ[..., None].to(hidden_RJU.dtype)
    return F.linear(hidden_RJU.flatten(1), w2_JDU.transpose(0, 1).flatten(1))
