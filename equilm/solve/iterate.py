"""The one sweep, and the one loop around it.

`begin` → `sweep` … `sweep` → `Solution`. `sweep` evaluates F once for all unknowns, measures each
residual, settles what is done, and lets the step rule move the rest; nothing in it waits for the
device. The sliding window and the decoding engine drive the same `sweep`. It has never heard of
tokens. Read `window.py` and `gradient.py` next.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from equilm.solve.anderson import Anderson
from equilm.solve.broyden import Broyden
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
        window: Length of chain solved at once; `None` solves the whole chain at once. Read by
            `window.py`'s caller, not by `iterate`.
        check_every: Sweeps between two reads of the state of convergence by the host, ≥ 1. The
            answer of `iterate` does not depend on it, that of `slide` only within the tolerance.
        cycle: When to give up early; `None` never does.
    """

    solver: Picard | Anderson | Broyden = field(default_factory=Picard)
    tolerance: float = 0.05
    max_steps: int = 24
    window: int | None = None
    check_every: int = 1
    cycle: CycleRule | None = field(default_factory=CycleRule)

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


def relative_residual(fz: Tensor, z: Tensor) -> Tensor:
    """‖F(z) − z‖ / ‖F(z)‖ over the last dimension, in float32."""
    # The difference of nearly equal numbers is taken before they are rounded.
    fz = fz.to(torch.promote_types(fz.dtype, torch.float32))
    bottom = torch.linalg.vector_norm(fz, dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    return (torch.linalg.vector_norm(fz - z, dim=-1) / bottom).float()


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
    p, moves = _judge(p, was_open & before & ~through, solve.cycle, max_steps)
    # Autocast would compute the products of the step rule in half precision.
    with torch.autocast(p.z.device.type, enabled=False):
        z_next, memory = solve.solver.step(p.z, fz, p.memory)
    if solve.cycle is not None:
        z_next = torch.lerp(p.z, z_next, p.relax[..., None].to(z_next.dtype))
    # An unknown that gives up goes back to its best point.
    gave_up = was_open & (p.status > Status.CONVERGED)
    resting = torch.where(gave_up[..., None], p.best_z, p.z)
    z = torch.where(moves[..., None], z_next, resting)
    return p._replace(z=z, memory=memory), fz, aux


def _prefixes(good: Tensor) -> tuple[Tensor, Tensor]:
    """Whether everything before an unknown of a chain is good, and everything up to it."""
    through = good.cumprod(-1).bool()
    before = torch.cat([torch.ones_like(through[..., :1]), through[..., :-1]], dim=-1)
    return before, through


def _judge(
    p: Progress, front: Tensor, cycle: CycleRule | None, max_steps: int | Tensor
) -> tuple[Progress, Tensor]:
    """Keep the best point of each unknown in front, end those that will not converge.

    Returns the progress, and which unknowns take the step that follows.
    """
    better = front & (p.residual < p.best_residual)
    p = p._replace(
        best_z=torch.where(better[..., None], p.z, p.best_z),
        best_residual=torch.where(better, p.residual, p.best_residual),
    )
    if cycle is not None:
        p = _watch(p, front, cycle)
    finite = torch.isfinite(p.residual)
    late = front & (p.status == Status.OPEN) & (p.age >= max_steps)
    p = p._replace(status=p.status.masked_fill(late | (front & ~finite), Status.CAPPED))
    gave_up = front & (p.status != Status.OPEN)
    # An unknown that was still improving when its steps ran out takes the last of them too.
    moves = finite & ((p.status == Status.OPEN) | (late & better))
    return p._replace(residual=torch.where(gave_up, p.best_residual, p.residual)), moves


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
    progress = begin(z, solve, settled=settled)
    history, last, sweeps = [], None, 0
    for sweeps in range(1, solve.max_steps + 1):
        measured = progress.z
        progress, fz, aux = sweep(transition, progress, solve, chain=chain)
        if trace:
            history.append(progress.residual)
        if sweeps % solve.check_every == 0 and not (progress.status == Status.OPEN).any():
            last = (fz, aux) if torch.equal(measured, progress.z) else None
            break
    status = progress.status.masked_fill(progress.status == Status.OPEN, Status.CAPPED)
    residuals = torch.stack(history) if history else None
    return Solution(progress.z, status, progress.steps, progress.residual, sweeps, residuals, last)
