"""Spectral radius and Jacobian norm of maps whose Jacobian is known."""

import math

import pytest
import torch
from torch import Tensor

from equilm.solve import jacobian_norm, spectral_radius

ROTATION = torch.tensor([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]])
# A shear of it turns unevenly: its growth oscillates from step to step.
SHEAR = torch.tensor([[1.0, 2.0], [0.0, 1.0]])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("matrix", "radius"),
    [
        (torch.diag(torch.tensor([0.5, -0.9, 0.1])), 0.9),
        (torch.tensor([[0.2, 5.0], [0.0, 0.3]]), 0.3),
        (torch.eye(3), 1.0),
        (0.8 * ROTATION, 0.8),
        (1.3 * SHEAR @ ROTATION @ torch.linalg.inv(SHEAR), 1.3),
    ],
)
def test_spectral_radius_of_a_matrix(matrix: Tensor, radius: float) -> None:
    z = torch.randn(3, len(matrix))
    found = spectral_radius(lambda z: (z @ matrix.T, None), z, steps=100, generator=generator())
    assert found.shape == (3,)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((3,), radius), rtol=0.03, atol=0)


def test_rows_have_their_own_radius() -> None:
    slope = torch.tensor([0.1, 0.9, 2.0])
    found = spectral_radius(
        lambda z: (slope[:, None, None] * z, None), torch.randn(3, 2, 4), generator=generator()
    )
    torch.testing.assert_close(found, slope)


def test_the_radius_is_taken_at_the_point_given() -> None:
    z = torch.tensor([[0.0], [1.0], [2.0]])
    found = spectral_radius(lambda z: (torch.cos(z), None), z, generator=generator())
    torch.testing.assert_close(found[1:], torch.sin(z[1:, 0]))
    assert found[0] < 1e-6


@pytest.mark.parametrize("size", [4, 30])
def test_jacobian_norm_of_a_matrix(size: int) -> None:
    matrix = torch.randn(size, size)
    found = jacobian_norm(
        lambda z: (z @ matrix.T, None), torch.randn(2, size), samples=2000, generator=generator()
    )
    expected = matrix.norm() / math.sqrt(size)
    torch.testing.assert_close(found, expected.expand(2), rtol=0.05, atol=0)


def test_jacobian_norm_of_a_scaled_orthogonal_map_is_the_scale() -> None:
    found = jacobian_norm(
        lambda z: (0.6 * z @ ROTATION, None), torch.randn(2, 2), samples=4000, generator=generator()
    )
    torch.testing.assert_close(found, torch.full((2,), 0.6), rtol=0.05, atol=0)


def test_both_work_where_gradients_are_off() -> None:
    z = torch.ones(1, 2)
    with torch.no_grad():
        radius = spectral_radius(lambda z: (z / 2, None), z, generator=generator())
        norm = jacobian_norm(lambda z: (z / 2, None), z, samples=3000, generator=generator())
    assert not radius.requires_grad
    torch.testing.assert_close(radius, torch.tensor([0.5]))
    torch.testing.assert_close(norm, torch.tensor([0.5]), rtol=0.05, atol=0)


def test_the_same_generator_gives_the_same_estimate() -> None:
    matrix, z = torch.randn(3, 3), torch.randn(1, 3)
    one, two = (
        jacobian_norm(lambda z: (z @ matrix, None), z, generator=generator()) for _ in range(2)
    )
    assert torch.equal(one, two)
