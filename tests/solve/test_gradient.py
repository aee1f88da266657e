"""Gradients of a fixed point: exact ones against finite differences, phantom ones in the limit."""

from typing import Any

import pytest
import torch
from torch import Tensor

from equilm.solve import Anderson, Implicit, NotConverged, Phantom, Picard, Solve, iterate

SIZE = 5
EXACT = Implicit(solve=Solve(solver=Anderson(), tolerance=1e-12, max_steps=200, cycle=None))


def contraction() -> Tensor:
    weight = torch.randn(SIZE, SIZE, dtype=torch.float64)
    return 0.7 * weight / torch.linalg.matrix_norm(weight, 2)


def solved(gradient: Phantom | Implicit, weight: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The fixed point of tanh(W z + x) with its gradient, and what the evaluation yields beside."""

    def transition(z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(z @ weight.T + x), (z * x).sum(-1)

    with torch.no_grad():
        found = iterate(transition, torch.zeros_like(x), Solve(tolerance=1e-14, max_steps=500))
    value, aux = gradient.attach(transition, found.value)
    return value, aux


def test_implicit_is_finite_differences() -> None:
    x = torch.randn(3, SIZE, dtype=torch.float64, requires_grad=True)
    weight = contraction().requires_grad_()
    assert torch.autograd.gradcheck(lambda w, x: solved(EXACT, w, x), (weight, x))


def test_implicit_of_a_linear_map_is_the_inverse() -> None:
    matrix, b = contraction(), torch.randn(2, SIZE, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(2, SIZE, dtype=torch.float64)
    answer = torch.linalg.solve(torch.eye(SIZE) - matrix, b.detach().T).T
    value, _ = EXACT.attach(lambda z: (z @ matrix.T + b, None), answer)
    torch.testing.assert_close(value, answer)
    (gradient,) = torch.autograd.grad(value, b, cotangent)
    expected = torch.linalg.solve((torch.eye(SIZE) - matrix).T, cotangent.T).T
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=0)


def test_phantom_tends_to_implicit() -> None:
    weight, x = contraction(), torch.randn(3, SIZE, dtype=torch.float64)
    cotangent, errors = torch.randn(3, SIZE, dtype=torch.float64), []

    def gradient_of(gradient: Phantom | Implicit) -> Tensor:
        leaf = weight.clone().requires_grad_()
        value, _ = solved(gradient, leaf, x)
        return torch.autograd.grad(value, leaf, cotangent)[0]

    exact = gradient_of(EXACT)
    for steps in (1, 4, 16, 100):
        phantom = gradient_of(Phantom(steps=steps))
        errors.append(float((phantom - exact).norm() / exact.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-2
    assert errors[-1] < 1e-9


def test_one_undamped_phantom_step_is_one_evaluation() -> None:
    z, weight = torch.randn(2, SIZE), torch.randn(SIZE, SIZE, requires_grad=True)
    value, aux = Phantom(steps=1, damping=1.0).attach(lambda z: (z @ weight, z.sum()), z)
    torch.testing.assert_close(value, z @ weight)
    assert aux == z.sum()
    (gradient,) = torch.autograd.grad(value.sum(), weight)
    torch.testing.assert_close(gradient, z.T @ torch.ones(2, SIZE))


@pytest.mark.parametrize("steps", [1, 3])
def test_a_residual_adds_its_gradient_and_nothing_to_the_value(steps: int) -> None:
    plain, charging = Phantom(steps=steps), Phantom(steps=steps, residual_weight=0.3)
    x, cotangent = torch.randn(2, 3, SIZE), torch.randn(2, 3, SIZE)
    z, weight = torch.randn(2, 3, SIZE), contraction().float()

    def f(leaf: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(z @ leaf.T + x)

    def loss_of(gradient: Phantom, leaf: Tensor) -> tuple[Tensor, Tensor]:
        value, _ = gradient.attach(lambda z: (f(leaf, z), None), z)
        return value, (value * cotangent).sum()

    leaf = weight.clone().requires_grad_()
    value, loss = loss_of(plain, leaf)
    at = z if steps == 1 else Phantom(steps=steps - 1).attach(lambda z: (f(leaf, z), None), z)[0]
    fz = f(leaf, at)
    shares = (torch.linalg.vector_norm(fz - at, dim=-1) / torch.linalg.vector_norm(fz, dim=-1)) ** 2
    (expected,) = torch.autograd.grad(loss + 0.3 * shares.sum(), leaf)
    told, loss = loss_of(charging, leaf)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(told, value)
    torch.testing.assert_close(gradient, expected)
    with torch.no_grad():
        assert torch.equal(loss_of(charging, weight)[0], value)


@pytest.mark.parametrize("gradient", [Phantom(steps=2), EXACT])
def test_nothing_flows_into_the_starting_point(gradient: Phantom | Implicit) -> None:
    z, x = torch.randn(2, SIZE, requires_grad=True), torch.randn(2, SIZE, requires_grad=True)
    value, _ = gradient.attach(lambda z: (torch.tanh(z) / 2 + x, None), z)
    value.sum().backward()
    assert z.grad is None
    assert x.grad is not None


@pytest.mark.parametrize(
    ("matrix", "solver"),
    [
        # An eigenvalue of 1: the gradient does not exist, whatever the solver.
        (torch.diag(torch.tensor([1.0, 0.5])), Anderson(damping=1.0)),
        # Expanding: it exists, but the plain iteration does not find it.
        (torch.diag(torch.tensor([-1.5, 0.5])), Picard(damping=1.0)),
        (1.2 * torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), Picard(damping=1.0)),
    ],
)
def test_a_gradient_that_is_not_found_is_an_error(matrix: Tensor, solver: Any) -> None:
    b = torch.ones(3, 2, requires_grad=True)
    solve = Solve(solver=solver, tolerance=1e-5, max_steps=100, cycle=None)
    value, _ = Implicit(solve=solve).attach(lambda z: (z @ matrix.T + b, None), torch.zeros(3, 2))
    # The second row has no gradient and must not raise the count.
    weight = torch.tensor([[1.0], [0.0], [1.0]])
    with pytest.raises(NotConverged, match="2 of 3 rows not converged after 100 steps"):
        (weight * value).sum().backward()


def test_an_expanding_map_has_a_gradient_that_anderson_finds() -> None:
    matrix = torch.diag(torch.tensor([-1.5, 0.5], dtype=torch.float64))
    b = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    answer = torch.tensor([[0.4, 2.0]] * 3, dtype=torch.float64)
    value, _ = EXACT.attach(lambda z: (z @ matrix.T + b, None), answer)
    value.sum().backward()
    assert b.grad is not None
    torch.testing.assert_close(b.grad, answer)


def test_a_function_that_does_not_depend_on_z_has_its_own_gradient() -> None:
    x = torch.randn(2, SIZE, requires_grad=True)
    value, _ = Implicit().attach(lambda z: (3 * x, None), torch.zeros(2, SIZE))
    value.sum().backward()
    assert x.grad is not None
    assert (x.grad == 3).all()


def test_backward_under_autocast_is_as_exact() -> None:
    matrix = contraction().float()
    b = torch.ones(2, SIZE, requires_grad=True)
    value, _ = Implicit().attach(
        lambda z: ((z[:, None] * matrix).sum(-1) + b, None), torch.ones(2, SIZE)
    )
    (expected,) = torch.autograd.grad(value.sum(), b, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = torch.autograd.grad(value.sum(), b)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("arguments", "name"), [({"steps": 0}, "steps"), ({"damping": 0.0}, "damping")]
)
def test_a_setting_out_of_range_is_named(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        Phantom(**arguments)
