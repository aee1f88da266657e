"""Every step rule on problems with known answers, and what is special to each."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from equilm.solve import SOLVERS, Anderson, Broyden, CycleRule, Picard, Solve, Status, iterate
from equilm.solve.move import relative_residual
from equilm.solve.step import Solver
from tests.solve.problems import PROBLEMS, linear

TOLERANCE = 1e-10


def solve(solver: Any, **settings: Any) -> Solve:
    return Solve(solver=solver, **{"tolerance": TOLERANCE, "max_steps": 200, **settings})


@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_finds_the_answer(kind: str, name: str) -> None:
    problem = PROBLEMS[name]()
    found = iterate(problem.transition, problem.z0, solve(SOLVERS[kind]()))
    assert (found.status == Status.CONVERGED).all()
    assert (found.value - problem.answer).abs().max() < 20 * TOLERANCE
    image, _ = problem.transition(found.value)
    residual = relative_residual(image, found.value)
    assert (residual <= TOLERANCE).all()
    assert torch.equal(residual, found.residual)
    assert found.steps.max() == found.sweeps


@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_row_has_the_same_bits_alone_and_in_any_batch(kind: str, name: str) -> None:
    problem = PROBLEMS[name]()
    together = iterate(problem.transition, problem.z0, solve(SOLVERS[kind]()))
    for rows in ([0], [3], [2, 1], [3, 2, 1, 0]):
        part = problem.rows(rows)
        found = iterate(part.transition, part.z0, solve(SOLVERS[kind]()))
        assert torch.equal(found.value, together.value[rows])
        assert torch.equal(found.steps, together.steps[rows])
        assert torch.equal(found.residual, together.residual[rows])


@pytest.mark.parametrize("kind", SOLVERS)
def test_float32_reaches_what_float32_can(kind: str) -> None:
    problem = PROBLEMS["deep_equilibrium"]()

    def transition(z: Tensor) -> tuple[Tensor, None]:
        return problem.function(z.double(), problem.b).float(), None

    found = iterate(transition, problem.z0.float(), solve(SOLVERS[kind](), tolerance=1e-6))
    assert (found.status == Status.CONVERGED).all()
    assert (found.value - problem.answer).abs().max() < 1e-5


@pytest.mark.parametrize("kind", SOLVERS)
def test_autocast_changes_nothing(kind: str) -> None:
    problem = PROBLEMS["deep_equilibrium"]()
    expected = iterate(problem.transition, problem.z0.float(), solve(SOLVERS[kind](), max_steps=4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = iterate(problem.transition, problem.z0.float(), solve(SOLVERS[kind](), max_steps=4))
    assert torch.equal(found.value, expected.value)


@pytest.mark.parametrize("kind", ["anderson", "broyden"])
def test_acceleration_beats_picard_where_it_is_ill_conditioned(kind: str) -> None:
    problem = linear([0.98, 0.5, -0.9, 0.2])
    plain = iterate(problem.transition, problem.z0, solve(Picard(), max_steps=5000))
    fast = iterate(problem.transition, problem.z0, solve(SOLVERS[kind]()))
    assert (plain.status == Status.CONVERGED).all()
    assert (fast.status == Status.CONVERGED).all()
    assert fast.sweeps * 20 < plain.sweeps


@pytest.mark.parametrize("kind", ["anderson", "broyden"])
def test_acceleration_finds_fixed_points_that_repel(kind: str) -> None:
    problem = linear([-1.5, 0.5, 0.2])
    found = iterate(problem.transition, problem.z0, solve(SOLVERS[kind]()))
    assert (found.status == Status.CONVERGED).all()
    assert (found.value - problem.answer).abs().max() < 1e-7


def test_picard_is_its_formula() -> None:
    z, fz = torch.randn(2, 3), torch.randn(2, 3)
    got, _ = Picard(damping=0.3).step(z, fz, ())
    torch.testing.assert_close(got, 0.3 * fz + 0.7 * z)


def test_anderson_with_one_difference_is_the_secant_rule() -> None:
    solver = Anderson(depth=1, damping=1.0, ridge=0.0, growth=10.0)
    z = torch.tensor([[1.0]], dtype=torch.float64)
    _, memory = solver.step(z, torch.cos(z), solver.init(z))
    z_next, _ = solver.step(z + 0.5, torch.cos(z + 0.5), memory)
    g, last_g = torch.cos(z + 0.5) - z - 0.5, torch.cos(z) - z
    torch.testing.assert_close(z_next, z + 0.5 - g * 0.5 / (g - last_g))


def test_anderson_solves_a_linear_map_in_as_many_steps_as_dimensions() -> None:
    problem = linear([0.9, 0.5, -0.9])
    found = iterate(problem.transition, problem.z0, solve(Anderson(ridge=0.0), tolerance=1e-8))
    assert (found.steps <= 5).all()


def with_history(solver: Solver) -> tuple[Tensor, Any]:
    """Three steps of two rows with residuals 1, 0.9 and 0.8."""
    z = torch.zeros(2, 3, dtype=torch.float64)
    memory = solver.init(z)
    for size, direction in zip((1.0, 0.9, 0.8), torch.eye(3, dtype=torch.float64), strict=True):
        z, memory = solver.step(z, z + size * direction, memory)
    assert memory.age.tolist() == [3, 3]
    return z, memory


@pytest.mark.parametrize("solver", [Anderson(damping=0.5), Broyden(damping=0.5)])
def test_a_row_whose_residual_grows_restarts(solver: Solver) -> None:
    z, memory = with_history(solver)
    g = torch.tensor([[0.0, 1.61, 0.0], [0.0, 1.59, 0.0]], dtype=torch.float64)
    z_next, memory = solver.step(z, z + g, memory)
    assert memory.age.tolist() == [1, 4]
    torch.testing.assert_close(z_next[0], (z + 0.5 * g)[0])
    assert not torch.allclose(z_next[1], (z + 0.5 * g)[1])


@pytest.mark.parametrize("solver", [Anderson(damping=0.5), Broyden(damping=0.5)])
def test_a_row_that_was_not_finite_restarts(solver: Solver) -> None:
    z, memory = with_history(solver)
    g = torch.tensor([[0.0, 0.7, 0.0], [0.0, 0.7, 0.0]], dtype=torch.float64)
    _, untouched = solver.step(z, z + g, memory)
    expected, _ = solver.step(z, z + 0.9 * g, untouched)
    g[0] = torch.nan
    _, memory = solver.step(z, z + g, memory)
    g[0] = 5.0
    z_next, _ = solver.step(z, z + 0.9 * g, memory)
    torch.testing.assert_close(z_next[0], (z + 0.45 * g)[0])
    assert torch.equal(z_next[1], expected[1])


def test_broyden_restarts_when_its_memory_is_full() -> None:
    solver = Broyden(depth=2)
    z = torch.randn(1, 3)
    memory, ages = solver.init(z), []
    for scale in (1.0, 0.9, 0.8, 0.7, 0.6):
        z, memory = solver.step(z, z + scale * torch.eye(3)[:1], memory)
        ages.append(int(memory.age))
    assert ages == [1, 2, 3, 1, 2]


def test_broyden_learns_from_the_step_taken_not_from_the_one_proposed() -> None:
    solver = Broyden()
    z = torch.zeros(1, 1, dtype=torch.float64)
    _, memory = solver.step(z, 3 - 2 * z, solver.init(z))
    z = torch.full_like(z, 0.3)
    z_next, _ = solver.step(z, 3 - 2 * z, memory)
    torch.testing.assert_close(z_next, torch.ones_like(z))


@pytest.mark.parametrize("solver", [Picard(damping=1.0), Anderson(damping=1.0), Broyden()])
def test_halved_steps_still_converge(solver: Solver) -> None:
    settings = solve(solver, tolerance=1e-8, cycle=CycleRule(patience=3, halvings=4))
    b = torch.linspace(0.5, 2, 4, dtype=torch.float64)[:, None]
    found = iterate(lambda z: (b - 1.8 * torch.tanh(z), None), torch.zeros_like(b), settings)
    assert (found.status == Status.CONVERGED).all()
    assert ((b - 1.8 * torch.tanh(found.value) - found.value).abs() < 1e-7).all()


@pytest.mark.parametrize(
    ("solver", "arguments"),
    [
        (Picard, {"damping": 0.0}),
        (Picard, {"damping": 1.1}),
        (Anderson, {"depth": 0}),
        (Anderson, {"damping": -1.0}),
        (Anderson, {"ridge": -1e-9}),
        (Anderson, {"growth": 0.5}),
        (Broyden, {"depth": 0}),
        (Broyden, {"damping": 2.0}),
        (Broyden, {"growth": 0.9}),
    ],
)
def test_a_setting_out_of_range_is_named(solver: type, arguments: dict[str, Any]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=rf"{name}: expected .* got {re.escape(str(value))}"):
        solver(**arguments)


def test_kinds_are_the_keys_of_the_table() -> None:
    assert [vars(solver())["kind"] for solver in SOLVERS.values()] == list(SOLVERS)
