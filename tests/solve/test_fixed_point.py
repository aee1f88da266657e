"""`fixed_point` as a tool of its own."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from equilm.solve import (
    SOLVERS,
    Implicit,
    NotConverged,
    Phantom,
    Solve,
    Status,
    fixed_point,
)

DOTTIE = 0.7390851332151607
TIGHT = Solve(tolerance=1e-12, max_steps=500, cycle=None)
EXACT = Implicit(solve=TIGHT)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 2, 2), (0, 4)])
def test_the_answer_has_the_shape_of_the_start(shape: tuple[int, ...]) -> None:
    found = fixed_point(torch.cos, torch.zeros(shape))
    assert found.value.shape == shape
    assert found.status.tolist() == [Status.CONVERGED] * shape[0]
    assert found.steps.shape == found.residual.shape == shape[:1]
    assert torch.allclose(found.value, torch.tensor(DOTTIE), atol=1e-4)


@pytest.mark.parametrize("kind", SOLVERS)
def test_every_solver(kind: str) -> None:
    solver: Any = SOLVERS[kind]()
    solve = Solve(solver=solver, tolerance=1e-6, max_steps=100)
    found = fixed_point(torch.cos, torch.zeros(2, 3), solve=solve)
    assert (found.status == Status.CONVERGED).all()
    assert (found.residual <= 1e-6).all()
    assert torch.allclose(found.value, torch.tensor(DOTTIE), atol=1e-5)


def test_a_tuple_of_tensors() -> None:
    a0, b0 = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, 2, 2, dtype=torch.float64)

    def function(z: Any) -> tuple[Tensor, Tensor]:
        a, b = z
        assert a.shape == a0.shape
        assert b.shape == b0.shape
        return torch.cos(b.sum(-1)) / 2, torch.sin(a)[..., None] / 2 + b / 4

    found = fixed_point(function, (a0, b0), solve=TIGHT)
    for value, image in zip(found.value, function(found.value), strict=True):
        torch.testing.assert_close(value, image)
    assert found.status.shape == (3,)


def test_rows_stop_on_their_own() -> None:
    slope = torch.tensor([[0.1], [0.9]], dtype=torch.float64)
    found = fixed_point(lambda z: slope * z + 1, torch.zeros(2, 1).double(), solve=TIGHT)
    assert (found.status == Status.CONVERGED).all()
    assert found.steps[0] < found.steps[1]
    torch.testing.assert_close(found.value, 1 / (1 - slope))


def test_what_did_not_converge_says_so() -> None:
    found = fixed_point(torch.cos, torch.zeros(2, 3), solve=Solve(tolerance=1e-6, max_steps=3))
    assert (found.status == Status.CAPPED).all()
    assert (found.residual > 1e-6).all()


@pytest.mark.parametrize("gradient", [EXACT, Phantom(steps=200)])
def test_the_gradient_is_finite_differences(gradient: Implicit | Phantom) -> None:
    weight = (0.3 * torch.randn(3, 3, dtype=torch.float64)).requires_grad_()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def solution(weight: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        def function(z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return torch.tanh(z[1] @ weight + x), torch.sin(z[0]) / 2

        z0 = (torch.zeros_like(x), torch.zeros_like(x))
        found = fixed_point(function, z0, solve=TIGHT, gradient=gradient).value
        return found[0], found[1]

    assert torch.autograd.gradcheck(solution, (weight, x))


def test_without_autograd_there_is_no_graph() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    with torch.no_grad():
        assert not fixed_point(lambda z: torch.cos(z) * x, torch.zeros(2, 3)).value.requires_grad
    assert fixed_point(lambda z: torch.cos(z) * x, torch.zeros(2, 3)).value.requires_grad


def test_no_parameters_no_gradient_no_error() -> None:
    found = fixed_point(lambda z: torch.ones_like(z), torch.zeros(2, 3))
    assert (found.value == 1).all()
    assert (found.status == Status.CONVERGED).all()


def test_a_gradient_that_does_not_exist_is_loud() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    value = fixed_point(lambda z: z + 0 * x, torch.ones(2, 3)).value
    with pytest.raises(NotConverged, match="implicit gradient: 2 of 2 rows"):
        value.sum().backward()


@pytest.mark.parametrize(
    "z0",
    [torch.tensor(1.0), (torch.zeros(2, 3), torch.zeros(3, 3)), (torch.zeros(2), torch.ones(()))],
)
def test_a_start_without_a_batch_is_an_error(z0: Any) -> None:
    with pytest.raises(ValueError, match="z0: expected shapes"):
        fixed_point(lambda z: z, z0)


def test_a_function_that_changes_the_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"function: expected shapes \[\(2, 3\)\] .* \[\(2, 4\)\]"):
        fixed_point(lambda z: torch.zeros(2, 4), torch.zeros(2, 3))


def layer(x: Tensor, weight: Tensor, z: Tensor) -> Tensor:
    return torch.tanh(z @ weight + x)


@pytest.mark.parametrize("gradient", [Implicit(), Phantom()])
def test_a_small_deep_equilibrium_model_learns(gradient: Implicit | Phantom) -> None:
    """A disc inside a ring, which no line tells apart: without z a loss of 0.69 is the best."""
    generator = torch.Generator().manual_seed(0)
    angle = 2 * torch.pi * torch.rand(64, generator=generator)
    label = (torch.rand(64, generator=generator) < 0.5).long()
    radius = 0.5 * torch.rand(64, generator=generator) + label
    points = torch.stack([radius * angle.cos(), radius * angle.sin(), torch.ones(64)], dim=1)
    weights = [
        (0.4 * torch.randn(size, 12, generator=generator)).requires_grad_() for size in (3, 12)
    ]
    head = torch.zeros(12, 2, requires_grad=True)
    optimizer = torch.optim.Adam([*weights, head], lr=0.05)
    losses = []
    for _ in range(60):
        into, recurrent = weights
        recurrent = 0.9 * recurrent / torch.linalg.matrix_norm(recurrent, 2).clamp(min=0.9)
        found = fixed_point(
            partial(layer, points @ into, recurrent),
            torch.zeros(64, 12),
            gradient=gradient,
        )
        assert (found.status == Status.CONVERGED).all()
        loss = torch.nn.functional.cross_entropy(found.value @ head, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.69
    assert losses[-1] < 0.1
