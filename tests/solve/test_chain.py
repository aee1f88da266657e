"""Chains: a position settles with or after all before it, and depends on nothing behind it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from equilm.solve import SOLVERS, CycleRule, Picard, Solve, Status, iterate
from equilm.solve.iterate import begin, sweep
from tests.solve.problems import product


def solve(**settings: Any) -> Solve:
    return Solve(**{"tolerance": 1e-8, "max_steps": 200, "cycle": None, **settings})


class Chain:
    """z_t = tanh(W z_t + V z_{t−1} + b_t) along dimension −2: position t sees positions ≤ t."""

    def __init__(self, rows: int = 3, length: int = 12, size: int = 4) -> None:
        self.weights = torch.randn(2, size, size, dtype=torch.float64)
        self.weights *= 0.7 / torch.linalg.matrix_norm(self.weights, 2)[:, None, None]
        self.b = torch.randn(rows, length, size, dtype=torch.float64)
        self.z0 = torch.zeros_like(self.b)

    def transition(self, z: Tensor) -> tuple[Tensor, None]:
        before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], dim=1)
        return torch.tanh(
            product(z, self.weights[0]) + product(before, self.weights[1]) + self.b
        ), None

    def one_by_one(self) -> Tensor:
        """Every position solved to the last digit before the next."""
        z = torch.zeros_like(self.b)
        for t in range(self.b.shape[1]):
            for _ in range(200):
                z[:, t] = self.transition(z)[0][:, t]
        return z


@pytest.mark.parametrize("kind", SOLVERS)
def test_finds_what_solving_one_by_one_finds(kind: str) -> None:
    chain = Chain()
    found = iterate(chain.transition, chain.z0, solve(solver=SOLVERS[kind]()), chain=True)
    assert (found.status == Status.CONVERGED).all()
    assert (found.value - chain.one_by_one()).abs().max() < 1e-6


def test_a_position_settles_with_or_after_all_before_it() -> None:
    chain = Chain()
    chain.b[:, ::3] = 5.0
    settings = solve()
    progress = begin(chain.z0, settings)
    early = False
    for _ in range(60):
        progress, _, _ = sweep(chain.transition, progress, settings, chain=True)
        is_open = progress.status == Status.OPEN
        assert torch.equal(is_open.cummax(-1).values, is_open)
        early |= bool((is_open & (progress.residual <= settings.tolerance)).any())
    assert early, "no position was good before those in front of it"
    assert not is_open.any()


@pytest.mark.parametrize("kind", SOLVERS)
def test_an_answer_depends_on_nothing_behind_it(kind: str) -> None:
    chain = Chain()
    settings = solve(solver=SOLVERS[kind](), cycle=CycleRule())
    expected = iterate(chain.transition, chain.z0, settings, chain=True)
    for t in (1, 5, 11):
        chain.b[:, t:] = torch.randn_like(chain.b[:, t:])
        found = iterate(chain.transition, chain.z0, settings, chain=True)
        for name in ("value", "status", "steps", "residual"):
            got, want = (getattr(s, name)[:, :t] for s in (found, expected))
            assert torch.equal(got, want), name
        expected = found


def test_a_position_that_cannot_settle_lets_the_chain_go_on() -> None:
    chain = Chain()

    def transition(z: Tensor) -> tuple[Tensor, None]:
        fz = chain.transition(z)[0].clone()
        fz[1, 3] = -z[1, 3] + chain.b[1, 3]
        return fz, None

    rule = CycleRule(patience=4, halvings=0)
    settings = solve(solver=Picard(damping=1.0), cycle=rule)
    found = iterate(transition, chain.z0, settings, chain=True)
    assert found.status[1, 3] == Status.CYCLING
    assert (found.status == Status.CYCLING).sum() == 1
    assert (found.status[1, 4:] == Status.CONVERGED).all()
    assert (found.steps[1, 4:] > found.steps[1, 3]).all()


def test_positions_behind_one_that_is_not_finite_are_solved_after_it() -> None:
    chain = Chain()

    def transition(z: Tensor) -> tuple[Tensor, None]:
        fz = chain.transition(z)[0].clone()
        # Not finite behind position 3 until that has been found.
        ready = (fz[:, 3] - z[:, 3]).abs().amax(-1) < 1e-6
        fz[:, 4:] = torch.where(ready[:, None, None], fz[:, 4:], torch.nan)
        return fz, None

    for kind in SOLVERS:
        found = iterate(transition, chain.z0, solve(solver=SOLVERS[kind]()), chain=True)
        assert (found.status == Status.CONVERGED).all()
        assert (found.value - chain.one_by_one()).abs().max() < 1e-6
