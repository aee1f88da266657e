"""The one sweep, and the one loop around it.

`begin` → `sweep` … `sweep` → `Solution`; `drive` is the loop. `sweep` evaluates F once for all
unknowns, measures each residual, settles what is done, and lets the step rule move the rest;
nothing in it waits for the device. The sliding window and the decoding engine drive the same
`sweep`. It has never heard of tokens. Read `window.py` and `gradient.py` next.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from equilm.solve.anderson import Anderson
from equilm.solve.broyden import Broyden
from equilm.solve.judge import CycleRule as CycleRule
from equilm.solve.judge import Record, judge
from equilm.solve.judge import Status as Status
from equilm.solve.move import moved, relative_residual, stepped
from equilm.solve.picard import Picard

# z (..., N) → (F(z) (..., N), anything else the evaluation yields)
Transition = Callable[[Tensor], tuple[Tensor, Any]]


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
        inplace: Whether a GPU may overwrite the progress where it lies, its tensors being apart.

    Returns:
        The next progress, and F(z) and aux at the point that was measured.
    """
    p = progress
    tolerance, max_steps = limits or (solve.tolerance, solve.max_steps)
    fz, aux = transition(p.z)
    # What a step rule remembers may be the point itself.
    inplace = inplace and not p.memory
    record, better, moves, gave_up = judge(
        relative_residual(fz, p.z),
        Record(*(getattr(p, name) for name in Record._fields)),
        tolerance,
        max_steps,
        solve.cycle,
        chain=chain,
        inplace=inplace,
    )
    p = p._replace(**record._asdict())
    relax = p.relax if solve.cycle is not None else None
    step = stepped(solve.solver, p.z, fz, p.memory, relax)
    z, best_z = moved(p.z, p.best_z, step, better, moves, gave_up, inplace=inplace)
    return p._replace(z=z, best_z=best_z, memory=step.memory), fz, aux


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
