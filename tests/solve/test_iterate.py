"""The loop: honest statuses, independence of unknowns, cycles, chains."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from equilm.solve import SOLVERS, CycleRule, Picard, Solution, Solve, Status, iterate
from equilm.solve.iterate import begin, sweep
from equilm.solve.move import relative_residual
from tests.solve.problems import PROBLEMS, Problem, linear

NAN, INF = torch.nan, torch.inf


def solve(**settings: Any) -> Solve:
    return Solve(**{"tolerance": 1e-8, "max_steps": 200, "cycle": None, **settings})


def solved(problem: Problem, **settings: Any) -> Solution:
    return iterate(problem.transition, problem.z0, solve(**settings), trace=True)


def test_residual_is_its_formula() -> None:
    z, fz = torch.randn(5, 3), torch.randn(5, 3)
    expected = (fz - z).square().sum(-1).sqrt() / fz.square().sum(-1).sqrt()
    torch.testing.assert_close(relative_residual(fz, z), expected)
    assert relative_residual(torch.zeros(1, 3), torch.zeros(1, 3)) == 0


def test_residual_of_close_float64_numbers_is_not_rounded_away() -> None:
    z = torch.ones(1, 4, dtype=torch.float64)
    residual = relative_residual(z + 1e-12, z)
    assert residual.dtype == torch.float32
    torch.testing.assert_close(residual, torch.tensor([1e-12]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", SOLVERS)
def test_too_few_steps_are_capped_and_said_so(kind: str) -> None:
    problem = PROBLEMS["deep_equilibrium"]()
    found = solved(problem, solver=SOLVERS[kind](), max_steps=3)
    assert (found.status == Status.CAPPED).all()
    assert (found.steps == 3).all()
    assert found.sweeps == 3
    assert (found.residual > 1e-8).all()


def test_capped_and_improving_is_the_plain_unrolled_iteration() -> None:
    problem = PROBLEMS["deep_equilibrium"]()
    z = problem.z0
    for _ in range(3):
        last, z = z, problem.function(z, problem.b)
    found = solved(problem, solver=Picard(damping=1.0), max_steps=3)
    assert torch.equal(found.value, z)
    assert found.last is None, "an evaluation of another point than the value"
    image = problem.function(last, problem.b)
    assert torch.equal(found.residual, relative_residual(image, last))


def test_capped_and_not_improving_is_the_best_point_seen() -> None:
    # Residuals of z ← 1 − 2 z from 0.3: 0.25, then 2/3 (at 0.4), then 6 (at 0.2).
    transition = lambda z: (1 - 2 * z, None)  # noqa: E731
    z0 = torch.tensor([[0.3]])
    found = iterate(transition, z0, solve(solver=Picard(damping=1.0), max_steps=3))
    assert found.status.tolist() == [Status.CAPPED]
    assert torch.equal(found.value, z0)
    torch.testing.assert_close(found.residual, relative_residual(1 - 2 * z0, z0))


def test_no_steps_return_the_start() -> None:
    def transition(z: Tensor) -> tuple[Tensor, None]:
        raise AssertionError("evaluated")

    z0 = torch.randn(2, 3)
    settled = torch.tensor([False, True])
    found = iterate(transition, z0, solve(max_steps=0), settled=settled)
    assert torch.equal(found.value, z0)
    assert found.status.tolist() == [Status.CAPPED, Status.CONVERGED]
    assert found.steps.tolist() == [0, 0]
    assert found.sweeps == 0


def test_a_start_at_the_answer_takes_one_evaluation() -> None:
    problem = PROBLEMS["linear"]()
    found = iterate(problem.transition, problem.answer, solve())
    assert (found.steps == 1).all()
    assert torch.equal(found.value, problem.answer)
    assert found.last is not None
    assert torch.equal(found.last[0], problem.function(problem.answer, problem.b))


def test_steps_count_the_evaluations_of_each_row() -> None:
    problem = PROBLEMS["cosine"]()
    found = solved(problem)
    assert found.trace is not None
    assert found.trace.shape == (found.sweeps, 4)
    assert torch.equal((found.trace > 1e-8).sum(0) + 1, found.steps)
    assert torch.equal(found.trace[-1], found.residual)
    assert len(set(found.steps.tolist())) > 1


def test_converged_rows_do_not_move() -> None:
    problem = PROBLEMS["cosine"]()
    settings = solve()
    progress = begin(problem.z0, settings)
    resting: dict[int, Tensor] = {}
    for _ in range(60):
        progress, _, _ = sweep(problem.transition, progress, settings, chain=False)
        for row in range(4):
            if progress.status[row] == Status.CONVERGED:
                assert torch.equal(resting.setdefault(row, progress.z[row]), progress.z[row])
    assert len(resting) == 4


@pytest.mark.parametrize("check_every", [2, 3, 1000])
def test_the_answer_does_not_depend_on_how_often_the_host_looks(check_every: int) -> None:
    problem = PROBLEMS["deep_equilibrium"]()
    often, seldom = solved(problem), solved(problem, check_every=check_every)
    for name in ("value", "status", "steps", "residual"):
        assert torch.equal(getattr(often, name), getattr(seldom, name)), name
    assert seldom.sweeps == min(200, -(-often.sweeps // check_every) * check_every)


@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize("cycle", [None, CycleRule()])
@pytest.mark.parametrize("poison", [NAN, INF])
def test_a_row_that_is_not_finite_is_capped_and_harms_nobody(
    kind: str, cycle: CycleRule | None, poison: float
) -> None:
    problem = PROBLEMS["deep_equilibrium"]()
    settings = solve(solver=SOLVERS[kind](), cycle=cycle)
    expected = iterate(problem.transition, problem.z0, settings)

    def transition(z: Tensor) -> tuple[Tensor, None]:
        fz = problem.function(z, problem.b).clone()
        fz[1] = poison
        return fz, None

    found = iterate(transition, problem.z0, settings)
    assert found.status.tolist() == [0, Status.CAPPED, 0, 0]
    assert torch.isfinite(found.value).all()
    assert found.steps[1] == 1
    assert not torch.isfinite(found.residual[1])
    for row in (0, 2, 3):
        assert torch.equal(found.value[row], expected.value[row])
        assert found.steps[row] == expected.steps[row]


def test_settled_rows_are_left_alone() -> None:
    problem = PROBLEMS["cosine"]()
    settled = torch.tensor([True, False, False, True])
    found = iterate(problem.transition, problem.z0, solve(), settled=settled)
    assert torch.equal(found.value[settled], problem.z0[settled])
    assert (found.status == Status.CONVERGED).all()
    assert found.steps[settled].tolist() == found.residual[settled].tolist() == [0, 0]
    assert (found.value - problem.answer)[~settled].abs().max() < 1e-7


class TestCycles:
    """z ← c − z, undamped, has period two; its fixed point c / 2 needs half the step."""

    c = torch.tensor([[1.0, 2.0], [3.0, -1.0]])

    def solve(self, cycle: CycleRule | None, **settings: Any) -> Solution:
        settings = {"solver": Picard(damping=1.0), "cycle": cycle, **settings}
        return iterate(lambda z: (self.c - z, None), 0.1 * self.c, solve(**settings))

    def test_without_halvings_it_is_cycling(self) -> None:
        found = self.solve(CycleRule(halvings=0))
        assert (found.status == Status.CYCLING).all()
        assert (found.steps == 9).all()
        best = torch.linalg.vector_norm(0.8 * self.c, dim=-1) / self.c.norm(dim=-1) / 0.9
        torch.testing.assert_close(found.residual, best)
        torch.testing.assert_close(found.value, 0.1 * self.c)

    def test_with_halvings_it_is_solved(self) -> None:
        found = self.solve(CycleRule())
        assert (found.status == Status.CONVERGED).all()
        torch.testing.assert_close(found.value, self.c / 2)

    def test_without_the_rule_it_is_capped(self) -> None:
        assert (self.solve(None).status == Status.CAPPED).all()

    def test_one_row_cycles_and_the_others_do_not_wait(self) -> None:
        slope = torch.tensor([[-1.0], [0.5]])
        found = iterate(
            lambda z: (self.c + slope * z, None),
            0.1 * self.c,
            solve(solver=Picard(damping=1.0), cycle=CycleRule(halvings=0)),
        )
        assert found.status.tolist() == [Status.CYCLING, Status.CONVERGED]

    def test_a_cycling_row_returns_its_best_point(self) -> None:
        # Improves in its last evaluation, but by too little to go on.
        sequence = iter([1.0, 2.0, 0.99])

        def transition(z: Tensor) -> tuple[Tensor, None]:
            return z + torch.tensor([[next(sequence)]]), None

        z0 = torch.tensor([[1e3]])
        settings = solve(solver=Picard(damping=1.0), cycle=CycleRule(patience=2, halvings=0))
        found = iterate(transition, z0, settings)
        assert found.status.tolist() == [Status.CYCLING]
        assert found.value.item() == 1e3 + 3.0

    @pytest.mark.parametrize("radius", [0.9, 0.98])
    def test_slow_is_not_cycling(self, radius: float) -> None:
        problem = linear([radius, 0.5])
        found = solved(problem, cycle=CycleRule(), tolerance=1e-6, max_steps=5000)
        assert (found.status == Status.CONVERGED).all()

    @pytest.mark.parametrize(
        "arguments", [{"patience": 0}, {"halvings": -1}, {"factor": 0.0}, {"factor": 1.5}]
    )
    def test_a_setting_out_of_range_is_an_error(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="cycle: expected"):
            CycleRule(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"tolerance": -1e-3},
        {"tolerance": NAN},
        {"max_steps": -1},
        {"window": 0},
        {"check_every": 0},
    ],
)
def test_a_setting_out_of_range_is_named(arguments: dict[str, Any]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=rf"{name}: expected .* got {re.escape(str(value))}"):
        Solve(**arguments)
