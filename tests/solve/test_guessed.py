"""A guess, good or bad, padded or not, ends where solving one position after the other ends."""

import pytest
import torch

from equilm.solve import Solve, Status
from equilm.solve.guessed import settle
from tests.solve.test_window import LENGTH, Chain, after

VALID = torch.tensor([LENGTH, 1, 13, LENGTH])


@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.parametrize(
    ("error", "max_steps", "in_windows"),
    [(0.0, 100, False), (1e-6, 60, False), (3.0, 45, True), (3.0, 200, False)],
)
def test_any_guess_ends_at_the_answer(
    error: float, max_steps: int, in_windows: bool, window: int
) -> None:
    chain = Chain()
    expected, state = chain.one_by_one(VALID)
    found = settle(
        chain.step,
        chain.u,
        chain.state,
        expected + error * torch.randn_like(expected),
        window=window,
        solve=Solve(tolerance=1e-10, max_steps=max_steps),
        valid=VALID,
    )
    keep = torch.arange(LENGTH) < VALID[:, None]
    assert (found.status == Status.CONVERGED).all()
    assert (found.value - expected)[keep].abs().max() < 1e-8
    assert (after(found).h - state.h).abs().max() < 1e-8
    assert torch.equal(after(found).seen, VALID)
    assert (found.sweeps > max_steps) == in_windows
    if error == 0:
        assert found.sweeps == 1 and (found.steps[keep] == 1).all()
