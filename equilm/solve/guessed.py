"""A chain solved from a guess of all its positions: at once, and in windows where that fails.

A good guess settles in a few sweeps however long the chain is; a bad one costs `max_steps` sweeps
more than none. Read `window.py` first, `equilm/decode/attractors.py` for where guesses come from.
"""

import torch
from torch import Tensor

from equilm import tree
from equilm.solve.compact import iterate_rows
from equilm.solve.iterate import Solution, Solve, Status, Transition
from equilm.solve.window import Step, slide


def settle(
    step: Step,
    inject: Tensor,
    state: tree.Tree,
    guess: Tensor,
    *,
    window: int,
    solve: Solve,
    valid: Tensor | None = None,
) -> Solution:
    """Solve a chain of T positions that are believed to be near their answers.

    Args:
        step: As for `slide`.
        inject: (B, T, E) what F depends on at each position.
        state: What the chain carries into its first position, row first.
        guess: (B, T, N) where each position begins.
        window: Positions solved at once after `solve.max_steps` sweeps over all of them, should
            some be open; T or more leaves these capped.
        solve: Step rule, tolerance and limits.
        valid: As for `slide`.

    Returns:
        A `Solution` for (B, T) whose `last` is F(value) and the state after it, and whose `sweeps`
        count the evaluation that gives these too.
    """
    length = inject.shape[1]
    settled = None
    if valid is not None:
        settled = torch.arange(length, device=inject.device) >= valid[:, None]

    def transition_of(rows: Tensor | None) -> Transition:
        here = (inject, state, valid)
        some = here if rows is None else tree.take(here, rows)
        return lambda z: step(z, *some)

    found = iterate_rows(transition_of, guess, solve, chain=True, settled=settled)
    if window < length and bool((found.status == Status.CAPPED).any()):
        steps, sweeps, size = found.steps, found.sweeps, guess.shape[-1]
        found = slide(
            step,
            inject,
            state,
            size=size,
            window=window,
            solve=solve,
            valid=valid,
            guess=found.value,
        )
        found = found._replace(steps=found.steps + steps, sweeps=found.sweeps + sweeps)
    if found.last is None:
        last = step(found.value, inject, state, valid)
        found = found._replace(last=last, sweeps=found.sweeps + 1)
    return found
