"""HiPPO's matrices against closed forms, and what they are for: keeping a signal."""

import math

import pytest
import torch

from equilm.ops.hippo import matrices, normal_plus_low_rank, project, reconstruct


def test_legs_is_its_closed_form() -> None:
    a_NN, b_N = matrices("legs", 9)
    for n in range(9):
        assert float(b_N[n]) == pytest.approx(math.sqrt(2 * n + 1))
        for k in range(9):
            root = math.sqrt((2 * n + 1) * (2 * k + 1))
            assert float(a_NN[n, k]) == pytest.approx(-root if n > k else -(n + 1.0) * (n == k))


def test_legt_is_its_closed_form() -> None:
    a_NN, b_N = matrices("legt", 9)
    for n in range(9):
        assert float(b_N[n]) == pytest.approx(math.sqrt(2 * n + 1))
        for k in range(9):
            root = math.sqrt((2 * n + 1) * (2 * k + 1))
            assert float(a_NN[n, k]) == pytest.approx(-root * (1 if k <= n else (-1) ** (n - k)))


@pytest.mark.parametrize("size", [2, 8, 64])
def test_legs_is_normal_plus_low_rank(size: int) -> None:
    eigenvalues_N, p_N, b_N, basis_MN = normal_plus_low_rank(size)
    basis_MM = torch.cat([basis_MN, basis_MN.conj()], dim=1)
    inner_MM = torch.diag(torch.cat([eigenvalues_N, eigenvalues_N.conj()]))
    p_M, b_M = torch.cat([p_N, p_N.conj()]), torch.cat([b_N, b_N.conj()])
    a_MM, expected_M = matrices("legs", size)
    got_MM = basis_MM @ (inner_MM - p_M[:, None] * p_M.conj()) @ basis_MM.mH
    torch.testing.assert_close(got_MM, a_MM + 0j, atol=1e-11 * size, rtol=0)
    torch.testing.assert_close(basis_MM @ b_M, expected_M + 0j, atol=1e-12 * size, rtol=0)
    assert (eigenvalues_N.imag > 0).all()


def test_coefficients_give_the_signal_back() -> None:
    time = torch.linspace(0, 1, 1000, dtype=torch.float64)
    signal = torch.sin(9 * time) + 0.5 * torch.cos(23 * time**2)
    whole = reconstruct(project(signal, 32, "legs")[-1], 1000)
    assert float((whole - signal).abs().mean()) < 5e-3
    last = reconstruct(project(signal, 32, "legt", window=300)[-1], 300)
    assert float((last - signal[-300:]).abs().mean()) < 1e-3
    few = reconstruct(project(signal, 4, "legs")[-1], 1000)
    assert float((few - signal).abs().mean()) > 0.1


def test_a_polynomial_is_kept_whole() -> None:
    signal = torch.linspace(-1, 1, 4000, dtype=torch.float64) ** 3
    exact = reconstruct(project(signal, 4, "legs")[-1], 4000)
    assert float((exact - signal).abs().max()) < 1e-2


@pytest.mark.parametrize(("measure", "window"), [("legs", 5), ("legt", None)])
def test_a_window_goes_with_legt_alone(measure: str, window: int | None) -> None:
    with pytest.raises(ValueError, match="window: expected one for legt and none for legs"):
        project(torch.zeros(5), 4, measure, window=window)  # type: ignore[arg-type]
