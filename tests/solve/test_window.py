"""The sliding window gives what solving one position after the other gives, row by row."""

from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from equilm.solve import SOLVERS, CycleRule, Picard, Solution, Solve, Status, slide
from tests.solve.problems import product

LENGTH = 18


class Carried(NamedTuple):
    """What the chain below carries: h, and how many positions it has seen."""

    h: Tensor  # (B, N)
    seen: Tensor  # (B,)


class Chain:
    """h_t = h_{t−1} / 2 + z_t and z_t = tanh(W z_t + V h_{t−1} + u_t)."""

    def __init__(self, rows: int = 4, length: int = LENGTH, size: int = 4) -> None:
        self.size = size
        self.weights = torch.randn(2, size, size, dtype=torch.float64)
        self.weights *= 0.6 / torch.linalg.matrix_norm(self.weights, 2)[:, None, None]
        # Rows of different difficulty, so that they move at different paces.
        scale = torch.linspace(0.1, 3, rows, dtype=torch.float64)[:, None, None]
        self.u = scale * torch.randn(rows, length, size, dtype=torch.float64)
        self.state = Carried(
            torch.randn(rows, size, dtype=torch.float64), torch.zeros(rows, dtype=torch.int64)
        )

    def step(
        self, z: Tensor, u: Tensor, state: Carried, valid: Tensor | None
    ) -> tuple[Tensor, Carried]:
        before = [state.h]
        for t in range(z.shape[1]):
            before.append(before[-1] / 2 + z[:, t])
        history = torch.stack(before, dim=1)
        image = torch.tanh(
            product(z, self.weights[0]) + product(history[:, :-1], self.weights[1]) + u
        )
        if valid is None:
            valid = torch.full_like(state.seen, z.shape[1])
        last = history[torch.arange(len(z)), valid]
        return image, Carried(last, state.seen + valid)

    def one_by_one(self, valid: Tensor | None = None) -> tuple[Tensor, Carried]:
        z, state = torch.zeros_like(self.u), self.state
        limit = torch.full_like(state.seen, self.u.shape[1]) if valid is None else valid
        for t in range(self.u.shape[1]):
            here = slice(t, t + 1)
            for _ in range(50):
                z[:, here], _ = self.step(z[:, here], self.u[:, here], state, None)
            _, after = self.step(z[:, here], self.u[:, here], state, (t < limit).long())
            z[:, here] = torch.where((t < limit)[:, None, None], z[:, here], 0.0)
            state = after
        return z, state

    def rows(self, rows: list[int]) -> "Chain":
        part = Chain(rows=len(rows))
        part.weights, part.u = self.weights, self.u[rows]
        part.state = Carried(*(leaf[rows] for leaf in self.state))
        return part

    def slide(self, window: int, valid: Tensor | None = None, **settings: Any) -> Solution:
        solve = Solve(**{"tolerance": 1e-10, "max_steps": 100, **settings})
        return slide(
            self.step,
            self.u,
            self.state,
            size=self.size,
            window=window,
            solve=solve,
            valid=valid,
        )


def after(found: Solution) -> Carried:
    assert found.last is not None
    state = found.last[1]
    assert isinstance(state, Carried)
    return state


@pytest.mark.parametrize("window", [1, 2, 7, LENGTH, 3 * LENGTH])
@pytest.mark.parametrize("kind", SOLVERS)
def test_every_window_finds_the_same(kind: str, window: int) -> None:
    chain = Chain()
    expected, state = chain.one_by_one()
    found = chain.slide(window, solver=SOLVERS[kind]())
    assert (found.status == Status.CONVERGED).all()
    assert (found.residual <= 1e-10).all()
    assert (found.value - expected).abs().max() < 1e-8
    assert (after(found).h - state.h).abs().max() < 1e-8
    assert after(found).seen.tolist() == [LENGTH] * 4
    assert found.last is not None
    assert (found.last[0] - found.value).abs().max() < 1e-8


@pytest.mark.parametrize("window", [1, 2, 7, LENGTH])
def test_the_residual_is_that_of_the_value(window: int) -> None:
    chain = Chain()
    found = chain.slide(window, tolerance=1e-3)
    image, _ = chain.step(found.value, chain.u, chain.state, None)
    residual = (image - found.value).norm(dim=-1) / image.norm(dim=-1)
    torch.testing.assert_close(residual.float(), found.residual, rtol=1e-5, atol=1e-12)
    assert found.last is not None
    torch.testing.assert_close(found.last[0], image)


@pytest.mark.parametrize("window", [1, 3, 16])
def test_padding_is_skipped(window: int) -> None:
    chain = Chain()
    valid = torch.tensor([0, 1, 13, LENGTH])
    expected, state = chain.one_by_one(valid)
    padding = torch.arange(LENGTH) >= valid[:, None]
    chain.u[padding] = 1e6
    found = chain.slide(window, valid)
    assert (found.value - expected).abs().max() < 1e-8
    assert (found.value[padding] == 0).all()
    assert (found.steps[padding] == 0).all()
    assert (found.steps[~padding] > 0).all()
    assert (after(found).h - state.h).abs().max() < 1e-8
    assert torch.equal(after(found).seen, valid)


@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize("window", [1, 5, 16])
def test_a_row_has_the_same_bits_alone_and_in_a_batch(kind: str, window: int) -> None:
    chain = Chain()
    valid = torch.tensor([7, LENGTH, 11, 15])
    settings = {"solver": SOLVERS[kind](), "tolerance": 1e-4}
    together = chain.slide(window, valid, **settings)
    paces = set()
    for rows in ([0], [2], [3, 1]):
        alone = chain.rows(rows).slide(window, valid[rows], **settings)
        paces.add(alone.sweeps)
        for name in ("value", "status", "steps", "residual"):
            assert torch.equal(getattr(alone, name), getattr(together, name)[rows]), name
        assert torch.equal(after(alone).h, after(together).h[rows])
    assert len(paces) > 1


@pytest.mark.parametrize("window", [1, 4, LENGTH])
def test_what_comes_later_changes_nothing(window: int) -> None:
    chain = Chain()
    expected = chain.slide(window, tolerance=1e-4)
    chain.u[:, 12:] = torch.randn_like(chain.u[:, 12:])
    found = chain.slide(window, tolerance=1e-4)
    for name in ("value", "status", "steps", "residual"):
        assert torch.equal(getattr(found, name)[:, :12], getattr(expected, name)[:, :12]), name


@pytest.mark.parametrize("window", [1, 4, 16])
def test_looking_less_often_gives_the_same_to_the_tolerance(window: int) -> None:
    chain = Chain()
    often, seldom = chain.slide(window), chain.slide(window, check_every=5)
    assert (seldom.status == Status.CONVERGED).all()
    assert (often.value - seldom.value).abs().max() < 1e-8
    if window == 1:
        assert torch.equal(often.value, seldom.value)


@pytest.mark.parametrize("window", [1, 4, 16])
@pytest.mark.parametrize("cycle", [None, CycleRule(patience=4, halvings=0)])
def test_a_position_that_does_not_settle_lets_the_chain_go_on(
    window: int, cycle: CycleRule | None
) -> None:
    chain = Chain()
    plain = chain.step
    # z ← c − z for position 10 of row 2, which the count of positions before it finds.
    c = torch.randn(4, dtype=torch.float64)

    def step(z: Tensor, u: Tensor, state: Carried, valid: Tensor | None) -> tuple[Tensor, Carried]:
        image, state_after = plain(z, u, state, valid)
        cycling = torch.arange(z.shape[1]) + state.seen[:, None] == 10
        cycling[[0, 1, 3]] = False
        return torch.where(cycling[..., None], c - z, image), state_after

    with patch.object(chain, "step", step):
        found = chain.slide(window, solver=Picard(damping=1.0), max_steps=60, cycle=cycle)
        image, _ = chain.step(found.value, chain.u, chain.state, None)
    ended = Status.CAPPED if cycle is None else Status.CYCLING
    assert found.status[2, 10] == ended
    assert (found.status == ended).sum() == 1
    assert (found.status == Status.CONVERGED).sum() == 4 * LENGTH - 1
    # What follows starts from the value given to the position that did not settle.
    assert (image - found.value)[2, 11:].abs().max() < 1e-8


@pytest.mark.parametrize("window", [1, 4, LENGTH])
def test_no_steps_evaluate_at_zero(window: int) -> None:
    chain = Chain()
    found = chain.slide(window, max_steps=0)
    assert (found.value == 0).all()
    assert (found.status == Status.CAPPED).all()
    assert (found.steps == 0).all()
    image, state = chain.step(torch.zeros_like(chain.u), chain.u, chain.state, None)
    assert found.last is not None
    torch.testing.assert_close(found.last[0], image)
    torch.testing.assert_close(after(found).h, state.h)


def test_one_position_at_a_time_costs_what_its_steps_say() -> None:
    chain = Chain(rows=1)
    with patch.object(chain, "step", wraps=chain.step) as step:
        found = chain.slide(1)
    assert step.call_count == found.sweeps == int(found.steps.sum())


def test_the_state_given_is_not_changed() -> None:
    chain = Chain()
    h, seen = chain.state.h.clone(), chain.state.seen.clone()
    chain.slide(4)
    assert torch.equal(chain.state.h, h)
    assert torch.equal(chain.state.seen, seen)


def test_float32_stays_float32() -> None:
    chain = Chain()
    expected = chain.slide(4)
    chain.u, chain.weights = chain.u.float(), chain.weights.float()
    chain.state = Carried(chain.state.h.float(), chain.state.seen)
    found = chain.slide(4, tolerance=1e-6)
    assert found.value.dtype == torch.float32
    assert expected.value.dtype == torch.float64
    assert (found.value - expected.value).abs().max() < 1e-4
