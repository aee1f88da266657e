"""A time-invariant diagonal state-space model of each channel, as recurrence and as convolution.

    h_t = exp(a) h_{t−1} + b u_t,   y_t = Re(c · h_t)        a, b, c complex (I, N)

`diagonal_ssm` picks one of two views by length; they have one signature and one meaning. `zoh` and
`bilinear` make a and b from a continuous system. Read `equilm/nn/s4d.py` next.
"""

import math

import torch
from torch import Tensor

from equilm.ops.fftconv import fft_conv
from equilm.ops.recurrence import recurrence, within

LONG = 32  # tokens from which the convolution is the faster view


def zoh(rate: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Hold the input between samples: return (log of the decay, gain) of ḣ = rate h + u.

    Args:
        rate: Complex, of negative real part, not 0.
        step: Real > 0, of a shape that goes with it.
    """
    log_decay = rate * step
    return log_decay, torch.expm1(log_decay) / rate


def bilinear(rate: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Join samples by straight lines (Tustin): (log of the decay, gain) as in `zoh`.

    Source: Gu et al. 2021, arXiv 2111.00396, equation 3.
    """
    half = rate * step / 2
    return torch.log1p(half) - torch.log1p(-half), step / (1 - half)


DISCRETISATIONS = {"zoh": zoh, "bilinear": bilinear}


def diagonal_ssm(
    u_BTI: Tensor,
    log_decay_IN: Tensor,
    b_IN: Tensor,
    c_IN: Tensor,
    state_BIN: Tensor | None,
    valid_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """h_t = exp(a) h_{t−1} + b u_t;  y_t = Re(c · h_t).

    Args:
        u_BTI: (B, T, I) real inputs, T ≥ 1.
        log_decay_IN: (I, N) a, of negative real part.
        b_IN: (I, N) input weights.
        c_IN: (I, N) output weights.
        state_BIN: (B, I, N) complex state before; `None` means zeros.
        valid_B: (B,) tokens of each row that count for the state returned; `None` means T.

    Returns:
        y_BTI, and the state (B, I, N) after the last token that counts.

    Source: Gu et al. 2022, arXiv 2206.11893.
    """
    view = by_convolution if u_BTI.shape[1] >= LONG else by_recurrence
    return view(u_BTI, log_decay_IN, b_IN, c_IN, state_BIN, valid_B)


def by_recurrence(
    u_BTI: Tensor,
    log_decay_IN: Tensor,
    b_IN: Tensor,
    c_IN: Tensor,
    state_BIN: Tensor | None,
    valid_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`diagonal_ssm`, one state after the other."""
    inputs_BTIN = b_IN * u_BTI[..., None]
    decay_BTIN, inputs_BTIN = within(torch.exp(log_decay_IN)[None, None], inputs_BTIN, valid_B)
    h_BTIN, last_BIN = recurrence(decay_BTIN, inputs_BTIN, state_BIN)
    return torch.einsum("btin,in->bti", h_BTIN, c_IN).real, last_BIN


def by_convolution(
    u_BTI: Tensor,
    log_decay_IN: Tensor,
    b_IN: Tensor,
    c_IN: Tensor,
    state_BIN: Tensor | None,
    valid_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`diagonal_ssm`, as the convolution with K_t = Re(c exp(a t) b), and one sum for the state."""
    tokens = u_BTI.shape[1]
    u_BTI = to_end(u_BTI, valid_B)
    # Behind zeros the kernel sees what it would see without them; so the rows go back afterwards.
    y_BTI = fft_conv(u_BTI, powers(c_IN * b_IN, log_decay_IN, tokens))
    y_BTI = to_start(y_BTI, valid_B)
    last_BIN = b_IN * remembered(u_BTI, log_decay_IN)
    if state_BIN is None:
        return y_BTI, last_BIN
    from_state_BIN = c_IN * torch.exp(log_decay_IN) * state_BIN
    y_BTI = y_BTI + powers(from_state_BIN, log_decay_IN, tokens).mT
    counts_B = u_BTI.new_full(u_BTI.shape[:1], tokens) if valid_B is None else valid_B
    left_BIN = torch.exp(log_decay_IN * counts_B[:, None, None])
    return y_BTI, left_BIN * state_BIN + last_BIN


def powers(weight_BIN: Tensor, log_decay_IN: Tensor, tokens: int) -> Tensor:
    """Return Re Σ_n weight exp(a t) for t < T, (…, I, T), as one product of √T by √T powers."""
    root = math.isqrt(tokens - 1) + 1
    small_INR, large_INQ = _two_powers(log_decay_IN, root, -(-tokens // root))
    product_BIQR = (weight_BIN[..., None] * large_INQ).mT @ small_INR
    return product_BIQR.real.flatten(-2)[..., :tokens]


def remembered(u_BTI: Tensor, log_decay_IN: Tensor) -> Tensor:
    """Return Σ_t exp(a (T−1−t)) u_t (B, I, N), in two sums of √T terms."""
    tokens = u_BTI.shape[1]
    root = math.isqrt(tokens - 1) + 1
    count = -(-tokens // root)
    small_INR, large_INQ = _two_powers(log_decay_IN, root, count)
    reversed_BIT = torch.nn.functional.pad(u_BTI.flip(1).mT, (0, root * count - tokens))
    u_BIQR = reversed_BIT.unflatten(-1, (count, root)).to(small_INR.dtype)
    return ((u_BIQR @ small_INR.mT) * large_INQ.mT).sum(-2)


def to_end(u_BTI: Tensor, valid_B: Tensor | None) -> Tensor:
    """Shift each row so that its last valid token is the last of all, behind zeros."""
    if valid_B is None:
        return u_BTI
    tokens = u_BTI.shape[1]
    source_BT = torch.arange(tokens, device=u_BTI.device) - (tokens - valid_B[:, None])
    index_BTI = source_BT.clamp(min=0)[..., None].expand_as(u_BTI)
    return u_BTI.gather(1, index_BTI).where((source_BT >= 0)[..., None], 0)


def to_start(y_BTI: Tensor, valid_B: Tensor | None) -> Tensor:
    """Shift each row back; what stands behind its valid tokens is arbitrary."""
    if valid_B is None:
        return y_BTI
    tokens = y_BTI.shape[1]
    source_BT = torch.arange(tokens, device=y_BTI.device) + (tokens - valid_B[:, None])
    return y_BTI.gather(1, source_BT.clamp(max=tokens - 1)[..., None].expand_as(y_BTI))


def _two_powers(log_decay_IN: Tensor, root: int, count: int) -> tuple[Tensor, Tensor]:
    """exp(a r) for r < root, and exp(a root q) for q < count."""
    device, dtype = log_decay_IN.device, log_decay_IN.real.dtype
    r_R = torch.arange(root, device=device, dtype=dtype)
    q_Q = root * torch.arange(count, device=device, dtype=dtype)
    return torch.exp(log_decay_IN[..., None] * r_R), torch.exp(log_decay_IN[..., None] * q_Q)
