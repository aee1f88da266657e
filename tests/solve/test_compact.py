"""Rows that leave the batch early change no answer."""

import pytest
import torch
from torch import Tensor

from equilm.solve import Anderson, Picard, Solve
from equilm.solve.compact import iterate_rows
from equilm.solve.iterate import Transition, iterate


def maps(rates_B: Tensor, targets_BTN: Tensor, seen: list[int]) -> tuple[Transition, object]:
    """Contractions of different strength, and the same for some of the rows."""

    def of(rows: Tensor | None) -> Transition:
        rate = rates_B if rows is None else rates_B[rows]
        target = targets_BTN if rows is None else targets_BTN[rows]

        def transition(z: Tensor) -> tuple[Tensor, None]:
            seen.append(len(z))
            return target + rate[:, None, None] * torch.sin(z - target), None

        return transition

    return of(None), of


@pytest.mark.parametrize("check_every", [1, 3])
@pytest.mark.parametrize("solver", [Picard(damping=1.0), Anderson()])
def test_the_answers_are_those_of_iterate(solver: Picard | Anderson, check_every: int) -> None:
    rates_B = torch.tensor([0.0, 0.9, 0.5, 0.99, 0.1], dtype=torch.float64)
    targets_BTN = torch.randn(5, 3, 4, dtype=torch.float64)
    solve = Solve(solver=solver, tolerance=1e-6, max_steps=80, check_every=check_every, cycle=None)
    seen: list[int] = []
    whole, of = maps(rates_B, targets_BTN, seen)
    settled = torch.zeros(5, 3, dtype=torch.bool)
    settled[2, 1:] = True
    zeros = torch.zeros_like(targets_BTN)
    expected = iterate(whole, zeros, solve, chain=True, settled=settled)
    seen.clear()
    got = iterate_rows(of, zeros, solve, chain=True, settled=settled)  # type: ignore[arg-type]
    for left, right in zip(got[:5], expected[:5], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=0)
    assert seen[0] == 5 and seen[-1] < 5, "nobody left"


def test_what_the_last_evaluation_gave_is_kept_if_nobody_left() -> None:
    targets_BTN = torch.randn(2, 3, 4)
    _, of = maps(torch.zeros(2), targets_BTN, [])
    found = iterate_rows(of, targets_BTN.clone(), Solve(tolerance=1e-5), chain=True)  # type: ignore[arg-type]
    assert found.last is not None and found.sweeps == 1


def test_no_steps() -> None:
    _, of = maps(torch.zeros(2), torch.randn(2, 3, 4), [])
    found = iterate_rows(of, torch.zeros(2, 3, 4), Solve(max_steps=0))  # type: ignore[arg-type]
    assert found.sweeps == 0 and (found.status == 1).all()
