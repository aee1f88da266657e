"""The diagonal linear recurrence that LRU, S4D, DSS, S5, S6 and QRNN share, real or complex.

    h_t = a_t h_{t−1} + u_t        per element

`recurrence` takes a_t for every token or one for all and is differentiable in everything, the
initial state included, as often as one likes. `steps` is its definition, token by token. Read
`diagonal.py` next.
"""

from typing import Any

import torch
from torch import Tensor

SHORT = 4  # tokens up to which one after the other is the fastest way


def recurrence(
    decay_BTX: Tensor, input_BTX: Tensor, state_BX: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t−1} + u_t, per element.

    Args:
        decay_BTX: (B, T, …) a, or (1, 1, …) for all tokens; real or complex.
        input_BTX: (B, T, …) u of the same type, T ≥ 1.
        state_BX: (B, …) the state before; `None` means zeros.

    Returns:
        h_BTX for every token, and the last of them.

    Source: Blelloch 1990, "Prefix sums and their applications".
    """
    if state_BX is not None:
        first_B1X = torch.addcmul(input_BTX[:, :1], decay_BTX[:, :1], state_BX[:, None])
        input_BTX = torch.cat([first_B1X, input_BTX[:, 1:]], dim=1)
    if input_BTX.shape[1] <= SHORT:
        h_BTX = steps(decay_BTX, input_BTX)
    else:
        h_BTX = _Recurrence.apply(decay_BTX.expand_as(input_BTX), input_BTX)
    return h_BTX, h_BTX[:, -1]


def within(decay_BTX: Tensor, input_BTX: Tensor, valid_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Let the state pass unchanged through the tokens behind `valid_B`: a = 1, u = 0.

    Args:
        decay_BTX: (B, T, …), or (1, 1, …) for all tokens.
        input_BTX: (B, T, …).
        valid_B: (B,) tokens of each row that count; `None` means all.

    Returns:
        Decays and inputs for `recurrence`, those given where all count.
    """
    if valid_B is None:
        return decay_BTX, input_BTX
    counts_BT = torch.arange(input_BTX.shape[1], device=valid_B.device) < valid_B[:, None]
    counts_BTX = counts_BT.reshape(*counts_BT.shape, *[1] * (input_BTX.ndim - 2))
    return decay_BTX.where(counts_BTX, 1), input_BTX.where(counts_BTX, 0)


def steps(decay_BTX: Tensor, input_BTX: Tensor) -> Tensor:
    """Return h_BTX of `recurrence` from a state of zeros, one token after the other."""
    if decay_BTX.shape[1] == 1:
        decay_BTX = decay_BTX.expand(-1, input_BTX.shape[1], *decay_BTX.shape[2:])
    h_TBX = [input_BTX[:, 0]]
    for t in range(1, input_BTX.shape[1]):
        h_TBX.append(torch.addcmul(input_BTX[:, t], decay_BTX[:, t], h_TBX[-1]))
    return torch.stack(h_TBX, dim=1)


class _Recurrence(torch.autograd.Function):
    """Keeps a and h alone; the gradient is the same recurrence, run backwards."""

    @staticmethod
    def forward(ctx: Any, decay_BTX: Tensor, input_BTX: Tensor) -> Tensor:
        h_BTX = _scan(decay_BTX, input_BTX)
        ctx.save_for_backward(decay_BTX, h_BTX)
        return h_BTX

    @staticmethod
    def backward(ctx: Any, dh_BTX: Tensor) -> tuple[Tensor, Tensor]:
        decay_BTX, h_BTX = ctx.saved_tensors
        # g_t = dh_t + conj(a_{t+1}) g_{t+1}: what h_t is worth, directly and through the next.
        later_BTX = torch.cat([decay_BTX[:, 1:], torch.zeros_like(decay_BTX[:, :1])], dim=1)
        later_BTX = later_BTX.conj().flip(1).resolve_conj()
        g_BTX = _Recurrence.apply(later_BTX, dh_BTX.flip(1)).flip(1)
        before_BTX = torch.cat([torch.zeros_like(h_BTX[:, :1]), h_BTX[:, :-1]], dim=1)
        return g_BTX * before_BTX.conj(), g_BTX


def _scan(decay_BTX: Tensor, input_BTX: Tensor) -> Tensor:
    """Join neighbours, solve the problem of half the length, fill in the others: O(T) work."""
    tokens = input_BTX.shape[1]
    if tokens <= SHORT:
        return steps(decay_BTX, input_BTX)
    even, odd = slice(0, tokens - 1, 2), slice(1, None, 2)
    joined_BKX = torch.addcmul(input_BTX[:, odd], decay_BTX[:, odd], input_BTX[:, even])
    h_BTX = torch.empty_like(input_BTX)
    h_BTX[:, odd] = half_BKX = _scan(decay_BTX[:, odd] * decay_BTX[:, even], joined_BKX)
    h_BTX[:, 0] = input_BTX[:, 0]
    between = slice(2, None, 2)
    count = (tokens - 1) // 2
    h_BTX[:, between] = torch.addcmul(
        input_BTX[:, between], decay_BTX[:, between], half_BKX[:, :count]
    )
    return h_BTX
