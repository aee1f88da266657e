"""S4's system against HiPPO's dense matrices, its two views against each other."""

import pytest
import torch
from torch import Tensor

from equilm.ops.dplr import System, by_convolution, by_recurrence, discrete, kernel, with_conjugates
from equilm.ops.hippo import matrices, normal_plus_low_rank
from tests.tolerance import assert_close

SIZE, CHANNELS = 6, 3


def make() -> list[Tensor]:
    """λ, p, b of HiPPO, c and the steps."""
    hippo = normal_plus_low_rank(SIZE)
    c_IN = torch.randn(CHANNELS, SIZE // 2, dtype=torch.complex128)
    step_I = torch.tensor([0.01, 0.1, 0.5], dtype=torch.float64)
    parts = [hippo.eigenvalues_N, hippo.p_N, hippo.b_N, c_IN, step_I]
    return [part.clone().requires_grad_() for part in parts]


def system(rate_N: Tensor, p_N: Tensor, b_N: Tensor, c_IN: Tensor, step_I: Tensor) -> System:
    rate_N, p_N, b_N, c_IN = with_conjugates(rate_N, p_N, b_N, c_IN)
    return System(rate_N, p_N, b_N, c_IN, step_I)


@pytest.mark.parametrize("tokens", [1, 2, 5, 64, 101])
@torch.no_grad()
def test_the_kernel_is_that_of_hippo(tokens: int) -> None:
    """In the basis of Legendre polynomials, by dense powers of a real matrix."""
    a_MM, b_M = matrices("legs", SIZE)
    basis_MN = torch.cat(with_conjugates(normal_plus_low_rank(SIZE).basis_MN), dim=1)
    found = system(*make())
    c_IM = (found.c_IN @ basis_MN.mH).real
    expected_IT = torch.empty(CHANNELS, tokens, dtype=torch.float64)
    for i, step in enumerate(found.step_I):
        left_MM = torch.eye(SIZE, dtype=torch.float64) - step / 2 * a_MM
        discrete_MM = torch.linalg.solve(left_MM, 2 * torch.eye(SIZE).double() - left_MM)
        h_M = torch.linalg.solve(left_MM, step * b_M)
        for t in range(tokens):
            expected_IT[i, t] = c_IM[i] @ h_M
            h_M = discrete_MM @ h_M
    assert_close("scan", kernel(found, discrete(found)[0], tokens), expected_IT)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("tokens", [1, 33, 64, 101, 200])
def test_both_views_agree_with_all_gradients(tokens: int, ragged: bool) -> None:
    u_BTI = torch.randn(3, tokens, CHANNELS, dtype=torch.float64)
    valid_B = torch.tensor([0, (tokens + 1) // 2, tokens]) if ragged else None
    counts_B = torch.full((3,), tokens) if valid_B is None else valid_B
    u_BTI = u_BTI.where((torch.arange(tokens) < counts_B[:, None])[..., None], 0)
    leaves, results = [*make(), u_BTI.requires_grad_()], []
    y_weight = torch.randn_like(u_BTI).where(
        torch.arange(tokens)[:, None] < counts_B[:, None, None], 0
    )
    h_weight = torch.randn(3, CHANNELS, SIZE, dtype=torch.complex128)
    for outs in (
        by_recurrence(u_BTI, system(*leaves[:5]), None, valid_B),
        by_convolution(u_BTI, system(*leaves[:5]), valid_B),
    ):
        y_BTI, h_BIN = outs[0] * (y_weight != 0), outs[1]
        loss = (y_BTI * y_weight).sum() + (h_BIN * h_weight).real.sum()
        results.append([y_BTI, h_BIN, *torch.autograd.grad(loss, leaves)])
    for want, got in zip(*results, strict=True):
        if got.is_complex():
            got, want = torch.view_as_real(got), torch.view_as_real(want)
        assert_close("gradient", got, want)


@torch.no_grad()
def test_the_recurrence_is_its_formula() -> None:
    found, u_BTI = system(*make()), torch.randn(2, 4, CHANNELS, dtype=torch.float64)
    h_BIN = torch.cat(with_conjugates(torch.randn(2, CHANNELS, 3, dtype=torch.complex128)), -1)
    y_BTI, last_BIN = by_recurrence(u_BTI, found, h_BIN)
    a_INN, b_IN = discrete(found)
    for t in range(4):
        h_BIN = (a_INN @ h_BIN[..., None])[..., 0] + b_IN * u_BTI[:, t, :, None]
        assert_close("scan", y_BTI[:, t], (found.c_IN * h_BIN).sum(-1).real)
    assert_close("scan", torch.view_as_real(last_BIN), torch.view_as_real(h_BIN))
    # Conjugates stay conjugates, so half of them is enough.
    assert_close("scan", last_BIN[..., 3:].imag, -last_BIN[..., :3].imag)
