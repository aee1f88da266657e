"""HiPPO: matrices whose linear system keeps a signal's best polynomial fit, and that fit itself.

    LegS: ċ(t) = (A c + B f) / t     coefficients over all of the past, scaled to [0, 1]
    LegT: ċ(t) = (A c + B f) / θ     coefficients over the last θ

Everything is in float64 on the CPU: constants to start from, not a step of a model. Read
`equilm/nn/s4.py` next.

Source: Gu et al. 2020, arXiv 2008.07669; normal plus low rank: Gu et al. 2021, arXiv 2111.00396.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Measure = Literal["legs", "legt"]


def matrices(measure: Measure, size: int) -> tuple[Tensor, Tensor]:
    """Return A (N, N) and B (N,) of a measure in orthonormal Legendre coefficients.

    Args:
        measure: "legs" or "legt".
        size: N ≥ 1, coefficients.

    Source: arXiv 2008.07669, theorems 1 and 2, with coefficients of √(2n + 1) P_n.
    """
    degree_N = torch.arange(size, dtype=torch.float64)
    b_N = torch.sqrt(2 * degree_N + 1)
    product_NN = b_N[:, None] * b_N
    if measure == "legs":
        return -product_NN.tril(-1) - torch.diag(degree_N + 1), b_N
    signs_NN = 1 - 2 * (torch.remainder(degree_N[:, None] - degree_N, 2))
    return -product_NN * signs_NN.where(degree_N[:, None] < degree_N, 1.0), b_N


class NormalPlusLowRank(NamedTuple):
    """A_LegS = V (diag(λ) − p p*) V*, one eigenvalue of each conjugate pair; V is unitary."""

    eigenvalues_N: Tensor
    p_N: Tensor
    b_N: Tensor  # V* B
    basis_MN: Tensor  # columns of V


def normal_plus_low_rank(size: int) -> NormalPlusLowRank:
    """Return LegS of `size` coefficients (even) as N / 2 conjugate pairs.

    Source: arXiv 2111.00396, theorem 1 and appendix C.1.
    """
    assert size % 2 == 0
    a_MM, b_M = matrices("legs", size)
    p_M = torch.sqrt(torch.arange(size, dtype=torch.float64) + 0.5)
    skew_MM = a_MM + p_M[:, None] * p_M + 0.5 * torch.eye(size, dtype=torch.float64)
    # −i S is Hermitian for a skew S, so its eigenvalues are real and its eigenvectors unitary.
    imaginary_M, basis_MM = torch.linalg.eigh(-1j * skew_MM)
    upper = imaginary_M > 0
    basis_MN = basis_MM[:, upper]
    eigenvalues_N = torch.complex(torch.full_like(imaginary_M, -0.5), imaginary_M)[upper]
    adjoint_NM = basis_MN.mH
    return NormalPlusLowRank(
        eigenvalues_N, adjoint_NM @ (p_M + 0j), adjoint_NM @ (b_M + 0j), basis_MN
    )


def project(signal_T: Tensor, size: int, measure: Measure, *, window: int | None = None) -> Tensor:
    """Return the coefficients (T, N) after each sample, by the bilinear rule.

    Args:
        signal_T: (T,) samples.
        size: N.
        measure: "legs", or "legt" over the last `window` samples.
        window: θ in samples; for "legt" alone.

    Raises:
        ValueError: If a window is missing, or is given to "legs".
    """
    if (window is None) != (measure == "legs"):
        raise ValueError(f"window: expected one for legt and none for legs, got {window}")
    a_NN, b_N = matrices(measure, size)
    eye_NN, c_N, coefficients_TN = torch.eye(size, dtype=torch.float64), torch.zeros_like(b_N), []
    for t, sample in enumerate(signal_T.double(), start=1):
        step = 1 / (t if window is None else window)
        right_N = (eye_NN + step / 2 * a_NN) @ c_N + step * b_N * sample
        c_N = torch.linalg.solve(eye_NN - step / 2 * a_NN, right_N)
        coefficients_TN.append(c_N)
    return torch.stack(coefficients_TN)


def reconstruct(coefficients_N: Tensor, samples: int) -> Tensor:
    """Return Σ c_n √(2n + 1) P_n at `samples` points, the oldest of the measure first."""
    places = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    scaled_N = coefficients_N * torch.sqrt(2 * torch.arange(len(coefficients_N)) + 1.0)
    return torch.from_numpy(np.polynomial.legendre.legval(2 * places.numpy() - 1, scaled_N.numpy()))
