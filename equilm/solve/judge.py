"""Who has settled, who gave up, who moves: what a sweep decides from the new residuals alone.

On a GPU it is one kernel (`judge_triton.py`). Read `iterate.py` first, `move.py` next.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor


class Status(IntEnum):
    """How an unknown ended; `OPEN` while it is still being solved."""

    OPEN = -1
    CONVERGED = 0
    CAPPED = 1
    CYCLING = 2


@dataclass(frozen=True, kw_only=True)
class CycleRule:
    """Give up on an unknown whose residual has stopped falling.

    When the residual has not fallen below `factor` times what it was `patience` evaluations ago,
    the unknown's steps are halved; after `halvings` of these it is `CYCLING` and keeps its best
    iterate. 0.9 and 8 let a map with spectral radius 0.98 pass.
    """

    patience: int = 8
    factor: float = 0.9
    halvings: int = 2

    def __post_init__(self) -> None:
        if self.patience < 1 or self.halvings < 0 or not 0 < self.factor <= 1:
            raise ValueError(
                "cycle: expected patience >= 1, halvings >= 0 and factor in (0, 1], got "
                f"{self.patience}, {self.halvings} and {self.factor}"
            )


class Record(NamedTuple):
    """What is known of each unknown beside its point; all (...)."""

    status: Tensor  # int8, a Status
    steps: Tensor  # int32, evaluations taken
    residual: Tensor  # float32, of the point when last measured
    age: Tensor  # int32, evaluations taken with everything before it settled
    best_residual: Tensor  # float32
    mark: Tensor  # float32, the residual that has to be undercut
    stalled: Tensor  # int32, evaluations since it last was
    relax: Tensor  # float32, 1 or halved by the cycle rule


class Verdict(NamedTuple):
    """The next record, and of each unknown what becomes of its point."""

    record: Record
    better: Tensor  # whether it is at its best point
    moves: Tensor  # whether it takes the step
    gave_up: Tensor  # whether it goes back to its best point


def judge(
    residual: Tensor,
    r: Record,
    tolerance: float | Tensor,
    max_steps: int | Tensor,
    cycle: CycleRule | None,
    *,
    chain: bool,
    inplace: bool = False,
) -> Verdict:
    """Settle what is done, and give up on what will not be.

    Args:
        residual: (...) float32, of this evaluation.
        r: Before it.
        tolerance: Of all, or (...) float32.
        max_steps: Of all, or (...) int32.
        cycle: When to give up early.
        chain: As for `sweep`.
        inplace: Whether a GPU may write into `r`, whose tensors are then all apart.
    """
    before = through = None
    if chain:
        open_ = r.status == Status.OPEN
        through = (~open_ | (residual <= tolerance)).cumprod(-1).bool()
        before = torch.cat([torch.ones_like(through[..., :1]), through[..., :-1]], dim=-1)
    if residual.is_cuda and r.best_residual.dtype == torch.float32:
        from equilm.solve.judge_triton import judge as kernel

        fields, *marks = kernel(
            residual, r, before, through, tolerance, max_steps, cycle, inplace=inplace
        )
        return Verdict(Record(*fields), *marks)
    was_open = r.status == Status.OPEN
    residual = torch.where(was_open, residual, r.residual)
    if before is None or through is None:
        before, through = torch.ones_like(was_open), ~was_open | (residual <= tolerance)
    r = r._replace(
        status=r.status.masked_fill(was_open & through, Status.CONVERGED),
        steps=r.steps + was_open.int(),
        residual=residual,
        age=r.age + (was_open & before).int(),
    )
    return _give_up(r, was_open & before & ~through, cycle, max_steps)


def _give_up(r: Record, front: Tensor, cycle: CycleRule | None, max_steps: int | Tensor) -> Verdict:
    """End those unknowns in front that will not converge."""
    better = front & (r.residual < r.best_residual)
    r = r._replace(best_residual=torch.where(better, r.residual, r.best_residual))
    if cycle is not None:
        r = _watch(r, front, cycle)
    finite = torch.isfinite(r.residual)
    late = front & (r.status == Status.OPEN) & (r.age >= max_steps)
    r = r._replace(status=r.status.masked_fill(late | (front & ~finite), Status.CAPPED))
    gave_up = front & (r.status != Status.OPEN)
    # An unknown that was still improving when its steps ran out takes the last of them too.
    moves = finite & ((r.status == Status.OPEN) | (late & better))
    r = r._replace(residual=torch.where(gave_up, r.best_residual, r.residual))
    return Verdict(r, better, moves, gave_up)


def _watch(r: Record, front: Tensor, rule: CycleRule) -> Record:
    """Count the evaluations since the residual last fell enough; halve the steps or give up."""
    fell = front & (r.residual < rule.factor * r.mark)
    stalled = torch.where(fell, 0, r.stalled + front.int())
    stuck = front & (stalled >= rule.patience)
    hopeless = stuck & (r.relax <= 0.5**rule.halvings)
    return r._replace(
        status=r.status.masked_fill(hopeless, Status.CYCLING),
        stalled=torch.where(stuck, 0, stalled),
        mark=torch.where(fell, r.residual, r.mark),
        relax=torch.where(stuck, r.relax * 0.5, r.relax),
    )
