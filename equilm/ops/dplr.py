"""A state-space model of each channel whose matrix is diagonal plus low rank, in both views.

    A = diag(λ) − p p*,   h_t = Ā h_{t−1} + b̄ u_t,   y_t = Re(c · h_t)        bilinear rule

N / 2 conjugate pairs are kept; here they stand beside their conjugates, so that all sums are real.
Read `equilm/nn/s4.py` next.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from equilm.ops.diagonal import LONG, to_end, to_start
from equilm.ops.fftconv import fft_conv

CHUNK = 64  # tokens whose inputs go into the last state by one product


class System(NamedTuple):
    """A, b, c and steps; λ, p, b and c with their conjugates behind them."""

    rate_N: Tensor
    p_N: Tensor
    b_N: Tensor
    c_IN: Tensor
    step_I: Tensor


def with_conjugates(*tensors: Tensor) -> list[Tensor]:
    """Return each (…, N / 2) tensor with its conjugate behind it, (…, N)."""
    return [torch.cat([tensor, tensor.conj()], dim=-1) for tensor in tensors]


def dplr_ssm(
    u_BTI: Tensor, system: System, state_BIN: Tensor | None = None, valid_B: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """h_t = Ā h_{t−1} + b̄ u_t;  y_t = c · h_t.

    Args:
        u_BTI: (B, T, I) real inputs, T ≥ 1.
        system: The continuous system.
        state_BIN: (B, I, N) state before, conjugates included; `None` means zeros.
        valid_B: (B,) tokens of each row that count for the state returned; `None` means T.

    Returns:
        y_BTI, and the state (B, I, N) after the last token that counts.

    Source: Gu et al. 2021, arXiv 2111.00396, algorithm 1.
    """
    if state_BIN is None and u_BTI.shape[1] >= LONG:
        return by_convolution(u_BTI, system, valid_B)
    return by_recurrence(u_BTI, system, state_BIN, valid_B)


def discrete(system: System) -> tuple[Tensor, Tensor]:
    """Return Ā (I, N, N) and b̄ (I, N) by the bilinear rule."""
    rate_N, p_N, b_N, _, step_I = system
    a_NN = torch.diag(rate_N) - p_N[:, None] * p_N.conj()
    half_INN = step_I[:, None, None] / 2 * a_NN
    eye_NN = torch.eye(len(rate_N), dtype=a_NN.dtype, device=a_NN.device)
    right_INM = torch.cat([eye_NN + half_INN, (step_I[:, None] * b_N)[..., None]], dim=-1)
    solved_INM = torch.linalg.solve(eye_NN - half_INN, right_INM)
    return solved_INM[..., :-1], solved_INM[..., -1]


def by_recurrence(
    u_BTI: Tensor, system: System, state_BIN: Tensor | None = None, valid_B: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`dplr_ssm`, one token after the other."""
    a_INN, b_IN = discrete(system)
    h_BIN = b_IN.new_zeros(len(u_BTI), *b_IN.shape) if state_BIN is None else state_BIN
    y_TBI = []
    for t, u_BI in enumerate(u_BTI.unbind(1)):
        next_BIN = torch.einsum("imn,bin->bim", a_INN, h_BIN) + b_IN * u_BI[..., None]
        y_TBI.append((next_BIN * system.c_IN).sum(-1).real)
        counts = None if valid_B is None else (t < valid_B)[:, None, None]
        h_BIN = next_BIN if counts is None else next_BIN.where(counts, h_BIN)
    return torch.stack(y_TBI, dim=1), h_BIN


def by_convolution(
    u_BTI: Tensor, system: System, valid_B: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`dplr_ssm` from a state of zeros: a convolution by FFT, and one sum for the state."""
    a_INN, b_IN = discrete(system)
    u_BTI = to_end(u_BTI, valid_B)
    y_BTI = fft_conv(u_BTI, kernel(system, a_INN, u_BTI.shape[1]))
    return to_start(y_BTI, valid_B), _remembered(u_BTI, a_INN, b_IN)


def kernel(system: System, a_INN: Tensor, tokens: int) -> Tensor:
    """Return c Ā^t b̄ for t < T, (I, T), from its generating function at the roots of unity.

    With z = exp(−2πik/T), R = (2/Δ (1 − z) − (1 + z) λ)⁻¹ is diagonal, and Woodbury's identity
    takes the low rank into account; written so, nothing is divided by 1 + z, which may be 0.
    """
    rate_N, p_N, b_N, c_IN, step_I = system
    # The truncated sum is the whole one with c (1 − Ā^T) instead of c.
    power_INN = torch.linalg.matrix_power(a_INN, tokens)
    c_IN = c_IN - (c_IN[:, None] @ power_INN)[:, 0]
    k_F = torch.arange(tokens // 2 + 1, device=rate_N.device, dtype=step_I.dtype)
    z_F1 = torch.exp(torch.complex(0 * k_F, -2 * torch.pi / tokens * k_F))[:, None]
    resolvent_IFN = 1 / (2 / step_I[:, None, None] * (1 - z_F1) - (1 + z_F1) * rate_N)
    weights_IN4 = torch.stack(
        [c_IN * b_N, c_IN * p_N, *((p_N.conj() * v_N).expand_as(c_IN) for v_N in (b_N, p_N))],
        dim=-1,
    )
    cb_IF, cp_IF, pb_IF, pp_IF = (resolvent_IFN @ weights_IN4).unbind(-1)
    low_F = 1 + z_F1[:, 0]
    return torch.fft.irfft(2 * (cb_IF - low_F * cp_IF * pb_IF / (1 + low_F * pp_IF)), tokens)


def _remembered(u_BTI: Tensor, a_INN: Tensor, b_IN: Tensor) -> Tensor:
    """Σ_t Ā^(T−1−t) b̄ u_t: a product inside each chunk, Horner's rule over chunks."""
    tokens = u_BTI.shape[1]
    powers_INR = b_IN[..., None]
    while powers_INR.shape[-1] < min(CHUNK, tokens):
        powers_INR = torch.cat([powers_INR, a_INN @ powers_INR], dim=-1)
        a_INN = a_INN @ a_INN
    size = powers_INR.shape[-1]
    reversed_BIT = torch.nn.functional.pad(u_BTI.flip(1).mT, (0, -tokens % size))
    u_BIQR = reversed_BIT.unflatten(-1, (-1, size)).to(b_IN.dtype)
    added_BIQN = u_BIQR @ powers_INR.mT
    h_BIN = added_BIQN[:, :, -1]
    for q in range(added_BIQN.shape[2] - 2, -1, -1):
        h_BIN = torch.einsum("imn,bin->bim", a_INN, h_BIN) + added_BIQN[:, :, q]
    return h_BIN
