"""`iterate` for a batch whose rows need different numbers of sweeps: those that are done leave it.

The answers are those of `iterate`, since settled rows are frozen there. Read `iterate.py` first.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from equilm import tree
from equilm.solve.iterate import Progress, Solution, Solve, Status, Transition, begin, sweep

LEAVE = 0.25  # share of the rows evaluated that must be done before the others are gathered anew


def iterate_rows(
    transition_of: Callable[[Tensor | None], Transition],
    z: Tensor,
    solve: Solve,
    *,
    chain: bool = False,
    settled: Tensor | None = None,
) -> Solution:
    """Solve z = F(z) for every unknown of every row.

    Args:
        transition_of: Takes the rows that are still evaluated (integers; `None` for all) and
            returns F for these.
        z: (B, ..., N) the starting point.
        solve: Step rule, tolerance and limits.
        chain: As for `sweep`.
        settled: As for `begin`.

    Returns:
        The `Solution`, without a trace; `last` only if no row left before the end.
    """
    whole = progress = begin(z, solve, settled=settled)
    rows, transition, last, sweeps = None, transition_of(None), None, 0
    for sweeps in range(1, solve.max_steps + 1):
        measured = progress.z
        progress, fz, aux = sweep(transition, progress, solve, chain=chain)
        if sweeps % solve.check_every:
            continue
        open_R = (progress.status == Status.OPEN).flatten(1).any(1)
        num_open = int(open_R.sum())
        if num_open == 0:
            last = (fz, aux) if rows is None and torch.equal(measured, progress.z) else None
            break
        if num_open <= (1 - LEAVE) * len(open_R):
            whole = _returned(whole, rows, progress)
            kept = open_R.nonzero()[:, 0]
            rows = kept if rows is None else rows[kept]
            progress, transition = tree.take(progress, kept), transition_of(rows)
    whole = _returned(whole, rows, progress)
    status = whole.status.masked_fill(whole.status == Status.OPEN, Status.CAPPED)
    return Solution(whole.z, status, whole.steps, whole.residual, sweeps, None, last)


def _returned(whole: Progress, rows: Tensor | None, progress: Progress) -> Progress:
    result: Progress = progress if rows is None else tree.put(whole, rows, progress)
    return result
