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

    When the best residual has not fallen below `factor` times itself for `patience` evaluations,
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
            answer does not depend on it.
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
    stalled: Tensor  # int32, evaluations since `best_residual` last fell enough
    relax: Tensor  # float32, 1 or halved by the cycle rule


class Solution(NamedTuple):
    """Where a solve ended, unknown by unknown. Not converged is a status, never an exception."""

    value: Tensor  # (..., N)
    status: Tensor  # (...) int8, a Status
    steps: Tensor  # (...) int32, evaluations until settled
    residual: Tensor  # (...) float32
    sweeps: int  # evaluations that depended on each other
    trace: Tensor | None  # (sweeps, ...) float32 residuals, if asked for
    last: tuple[Tensor, Any] | None  # F(value) and what came with it, if already known


def relative_residual(fz: Tensor, z: Tensor) -> Tensor:
    """‖F(z) − z‖ / ‖F(z)‖ over the last dimension, in float32."""
    fz = fz.float()
    bottom = torch.linalg.vector_norm(fz, dim=-1)
    tiny = torch.finfo(torch.float32).tiny
    return torch.linalg.vector_norm(fz - z.float(), dim=-1) / bottom.clamp(min=tiny)


def begin(z: Tensor, solve: Solve, *, settled: Tensor | None = None) -> Progress:
    """Return the progress of a solve before its first sweep.

    Args:
        z: (..., N) the starting point.
        solve: What it means to solve.
        settled: (...) unknowns that are not to be touched (padding); they count as converged.
    """
    lead, device = z.shape[:-1], z.device
    status = torch.full(lead, int(Status.OPEN), dtype=torch.int8, device=device)
    if settled is not None:
        status = torch.where(settled, int(Status.CONVERGED), status).to(torch.int8)
    counts = torch.zeros(lead, dtype=torch.int32, device=device)
    worst = torch.full(lead, torch.inf, device=device)
    relax = torch.ones(lead, device=device)
    memory = solve.solver.init(z)
    return Progress(z, memory, status, counts, worst, counts, z, worst, counts, relax)


def sweep(
    transition: Transition, progress: Progress, solve: Solve, *, chain: bool
) -> tuple[Progress, Tensor, Any]:
    """Evaluate F once, settle what is done, and move the rest by one step.

    Args:
        transition: z ↦ (F(z), aux).
        progress: From `begin` or the last sweep.
        solve: What it means to solve.
        chain: Whether unknown t along dimension −2 depends on unknowns ≤ t, and on no later one.
            Then it settles only together with or after all before it, so that its answer depends
            on nothing behind it.

    Returns:
        The next progress, and F(z) and aux at the point that was measured.
    """
    p = progress
    fz, aux = transition(p.z)
    residual = torch.where(p.status == Status.OPEN, relative_residual(fz, p.z), p.residual)
    is_open = p.status == Status.OPEN
    good = ~is_open | (residual <= solve.tolerance)
    if chain:
        prefix = good.cumprod(-1).bool()
        before = torch.cat([torch.ones_like(prefix[..., :1]), prefix[..., :-1]], dim=-1)
    else:
        prefix, before = good, torch.ones_like(good)
    converged = is_open & prefix
    front = is_open & before & ~prefix
    status = torch.where(converged, int(Status.CONVERGED), p.status)
    steps, age = p.steps + is_open.int(), p.age + (front | converged).int()

    better = front & (residual < p.best_residual)
    best_z = torch.where(better[..., None], p.z, p.best_z)
    fell = front & (residual < p.best_residual * (solve.cycle.factor if solve.cycle else 1.0))
    best_residual = torch.where(better, residual, p.best_residual)
    stalled = torch.where(fell, 0, p.stalled + front.int())
    relax = p.relax
    if solve.cycle is not None:
        stuck = front & (stalled >= solve.cycle.patience)
        hopeless = stuck & (relax <= 0.5**solve.cycle.halvings)
        status = torch.where(hopeless, int(Status.CYCLING), status)
        relax = torch.where(stuck, relax * 0.5, relax)
        stalled = torch.where(stuck, 0, stalled)
    status = torch.where(front & (status == Status.OPEN) & (age >= solve.max_steps), 1, status)
    gave_up = front & (status != Status.OPEN)
    residual = torch.where(gave_up, best_residual, residual)

    z_next, memory = solve.solver.step(p.z, fz, p.memory)
    if solve.cycle is not None:
        z_next = torch.lerp(p.z, z_next, relax[..., None].to(z_next.dtype))
    # An unknown that was still improving when its steps ran out takes the last of them too.
    moves = (status == Status.OPEN) | (gave_up & better)
    z = torch.where(moves[..., None], z_next, torch.where(gave_up[..., None], best_z, p.z))
    status = status.to(torch.int8)
    following = Progress(
        z, memory, status, steps, residual, age, best_z, best_residual, stalled, relax
    )
    return following, fz, aux


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
    status = progress.status
    status = torch.where(status == Status.OPEN, int(Status.CAPPED), status).to(torch.int8)
    residuals = torch.stack(history) if history else None
    return Solution(progress.z, status, progress.steps, progress.residual, sweeps, residuals, last)
