"""The one sweep, and the one loop around it.

`begin` → `sweep` … `sweep` → `Solution`; `drive` is the loop. `sweep` evaluates F once for all
unknowns, measures each residual, settles what is done, and lets the step rule move the rest;
nothing in it waits for the device. The sliding window and the decoding engine drive the same
`sweep`. It has never heard of tokens. Read `window.py` and `gradient.py` next.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from equilm.solve.anderson import Anderson
from equilm.solve.broyden import Broyden
from equilm.solve.move import moved, relative_residual, stepped
from equilm.solve.picard import Picard

# z (..., N) → (F(z) (..., N), anything else the evaluation yields)
Transition = Callable[[Tensor], tuple[Tensor, Any]]


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


@dataclass(frozen=True, kw_only=True)
class Solve:
    """What it means to solve z = F(z).

    Args:
        solver: The step rule.
        tolerance: Converged when ‖F(z) − z‖ / ‖F(z)‖ ≤ tolerance, ≥ 0; 0.05 as published.
        max_steps: Evaluations an unknown may take with everything before it settled, ≥ 0.
        window: Length of chain solved at once; `None` solves all. Read by `window.py`'s caller.
        check_every: Sweeps between two reads of the state of convergence by the host, ≥ 1. The
            answer of `iterate` does not depend on it, that of `slide` only within the tolerance.
        cycle: When to give up early; `None` never does.
        precision: Of the evaluations; `fp8` multiplies in 8 bits. Read by F's owner, like `window`.
    """

    solver: Picard | Anderson | Broyden = field(default_factory=Picard)
    tolerance: float = 0.05
    max_steps: int = 24
    window: int | None = None
    check_every: int = 1
    cycle: CycleRule | None = field(default_factory=CycleRule)
    precision: Literal["full", "fp8"] = "full"

    def __post_init__(self) -> None:
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance: expected a number >= 0, got {self.tolerance}")
        if self.max_steps < 0:
            raise ValueError(f"max_steps: expected an integer >= 0, got {self.max_steps}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window: expected an integer >= 1, got {self.window}")
        if self.check_every < 1:
            raise ValueError(f"check_every: expected an integer >= 1, got {self.check_every}")


class Progress(NamedTuple):
    """A solve in flight: a tree of tensors that all start with the leading dimensions of z."""

    z: Tensor
    memory: Any
    status: Tensor  # int8, a Status
    steps: Tensor  # int32, evaluations taken
    residual: Tensor  # float32, of the point `z` was when last measured
    age: Tensor  # int32, evaluations taken with everything before it settled
    best_z: Tensor
    best_residual: Tensor  # float32
    mark: Tensor  # float32, the residual that has to be undercut
    stalled: Tensor  # int32, evaluations since it last was
    relax: Tensor  # float32, 1 or halved by the cycle rule


class Limits(NamedTuple):
    """What stands in for `Solve.tolerance` and `Solve.max_steps` where unknowns differ in them."""

    tolerance: Tensor  # (...) float32
    max_steps: Tensor  # (...) int32, at least 1


class Solution(NamedTuple):
    """Where a solve ended, unknown by unknown. Not converged is a status, never an exception."""

    value: Tensor  # (..., N)
    status: Tensor  # (...) int8, a Status
    steps: Tensor  # (...) int32, evaluations until settled
    residual: Tensor  # (...) float32, of value; if CAPPED, possibly of the point one step before it
    sweeps: int  # evaluations that depended on each other
    trace: Tensor | None  # (sweeps, ...) float32 residuals, if asked for
    last: tuple[Tensor, Any] | None  # F(value) and what came with it, if already known


def begin(z: Tensor, solve: Solve, *, settled: Tensor | None = None) -> Progress:
    """Return the progress of a solve before its first sweep.

    Args:
        z: (..., N) the starting point.
        solve: What it means to solve.
        settled: (...) unknowns that are not to be touched (padding); they count as converged.
    """
    lead, device = z.shape[:-1], z.device
    first = Status.OPEN if solve.max_steps else Status.CAPPED
    status = torch.full(lead, int(first), dtype=torch.int8, device=device)
    counts = torch.zeros(lead, dtype=torch.int32, device=device)
    worst = residual = torch.full(lead, torch.inf, device=device)
    if settled is not None:
        status = status.masked_fill(settled, Status.CONVERGED)
        residual = torch.where(settled, 0.0, worst)
    return Progress(
        z=z,
        memory=solve.solver.init(z),
        status=status,
        steps=counts,
        residual=residual,
        age=counts,
        best_z=z,
        best_residual=worst,
        mark=worst,
        stalled=counts,
        relax=torch.ones(lead, device=device),
    )


def sweep(
    transition: Transition,
    progress: Progress,
    solve: Solve,
    *,
    chain: bool,
    limits: Limits | None = None,
    inplace: bool = False,
) -> tuple[Progress, Tensor, Any]:
    """Evaluate F once, settle what is done, and move the rest by one step.

    Args:
        transition: z ↦ (F(z), aux).
        progress: From `begin` or the last sweep.
        solve: What it means to solve.
        chain: Whether unknown t along dimension −2 depends on unknowns ≤ t, and on no later one.
            Then it settles only together with or after all before it, so that its answer depends
            on nothing behind it.
        limits: Tolerance and steps of each unknown, instead of those of `solve`.
        inplace: Whether z and the best z may be overwritten where they lie.

    Returns:
        The next progress, and F(z) and aux at the point that was measured.
    """
    p = progress
    tolerance, max_steps = limits or (solve.tolerance, solve.max_steps)
    fz, aux = transition(p.z)
    was_open = p.status == Status.OPEN
    residual = torch.where(was_open, relative_residual(fz, p.z), p.residual)
    good = ~was_open | (residual <= tolerance)
    before, through = _prefixes(good) if chain else (torch.ones_like(good), good)
    p = p._replace(
        status=p.status.masked_fill(was_open & through, Status.CONVERGED),
        steps=p.steps + was_open.int(),
        residual=residual,
        age=p.age + (was_open & before).int(),
    )
    p, better, moves = _judge(p, was_open & before & ~through, solve.cycle, max_steps)
    relax = p.relax if solve.cycle is not None else None
    step = stepped(solve.solver, p.z, fz, p.memory, relax)
    gave_up = was_open & (p.status > Status.CONVERGED)
    z, best_z = moved(p.z, p.best_z, step, better, moves, gave_up, inplace=inplace)
    return p._replace(z=z, best_z=best_z, memory=step.memory), fz, aux


def _prefixes(good: Tensor) -> tuple[Tensor, Tensor]:
    """Whether everything before an unknown of a chain is good, and everything up to it."""
    through = good.cumprod(-1).bool()
    before = torch.cat([torch.ones_like(through[..., :1]), through[..., :-1]], dim=-1)
    return before, through


def _judge(
    p: Progress, front: Tensor, cycle: CycleRule | None, max_steps: int | Tensor
) -> tuple[Progress, Tensor, Tensor]:
    """End those unknowns in front that will not converge.

    Returns the progress, which unknowns are at their best point, and which take the step.
    """
    better = front & (p.residual < p.best_residual)
    p = p._replace(best_residual=torch.where(better, p.residual, p.best_residual))
    if cycle is not None:
        p = _watch(p, front, cycle)
    finite = torch.isfinite(p.residual)
    late = front & (p.status == Status.OPEN) & (p.age >= max_steps)
    p = p._replace(status=p.status.masked_fill(late | (front & ~finite), Status.CAPPED))
    gave_up = front & (p.status != Status.OPEN)
    # An unknown that was still improving when its steps ran out takes the last of them too.
    moves = finite & ((p.status == Status.OPEN) | (late & better))
    p = p._replace(residual=torch.where(gave_up, p.best_residual, p.residual))
    return p, better, moves


def _watch(p: Progress, front: Tensor, rule: CycleRule) -> Progress:
    """Count the evaluations since the residual last fell enough; halve the steps or give up."""
    fell = front & (p.residual < rule.factor * p.mark)
    stalled = torch.where(fell, 0, p.stalled + front.int())
    stuck = front & (stalled >= rule.patience)
    hopeless = stuck & (p.relax <= 0.5**rule.halvings)
    return p._replace(
        status=p.status.masked_fill(hopeless, Status.CYCLING),
        stalled=torch.where(stuck, 0, stalled),
        mark=torch.where(fell, p.residual, p.mark),
        relax=torch.where(stuck, p.relax * 0.5, p.relax),
    )


def iterate(
    transition: Transition,
    z: Tensor,
    solve: Solve,
    *,
    chain: bool = False,
    settled: Tensor | None = None,
    trace: bool = False,
) -> Solution:
    """Solve z = F(z) for every unknown, from the starting point given.

    Args:
        transition: z (..., N) ↦ (F(z) (..., N), aux).
        z: (..., N) the starting point.
        solve: Step rule, tolerance and limits.
        chain: As for `sweep`.
        settled: As for `begin`.
        trace: Whether to keep the residuals of every sweep.

    Returns:
        The `Solution`. Whatever had not settled after `max_steps` sweeps is `CAPPED`.
    """

    def step(progress: Progress) -> tuple[Progress, tuple[Tensor, Any] | None]:
        after, fz, aux = sweep(transition, progress, solve, chain=chain)
        return after, (fz, aux)

    return drive(step, begin(z, solve, settled=settled), solve, trace=trace)


def drive(
    step: Callable[[Progress], tuple[Progress, tuple[Tensor, Any] | None]],
    progress: Progress,
    solve: Solve,
    *,
    trace: bool = False,
) -> Solution:
    """Repeat one sweep until every unknown has settled or `max_steps` sweeps are done.

    Args:
        step: One sweep: the next progress, and what `sweep` yields beside it, if it is at hand.
        progress: From `begin`.
        solve: `max_steps` and `check_every`.
        trace: Whether to keep the residuals of every sweep.
    """
    history, last, sweeps = [], None, 0
    for sweeps in range(1, solve.max_steps + 1):
        measured = progress.z
        progress, seen = step(progress)
        if trace:
            history.append(progress.residual.clone())
        if sweeps % solve.check_every == 0 and not (progress.status == Status.OPEN).any():
            if seen is not None and torch.equal(measured, progress.z):
                last = seen
            break
    status = progress.status.masked_fill(progress.status == Status.OPEN, Status.CAPPED)
    residuals = torch.stack(history) if history else None
    return Solution(progress.z, status, progress.steps, progress.residual, sweeps, residuals, last)
