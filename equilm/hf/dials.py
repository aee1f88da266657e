"""The dials of a solve for one call, and a word where they ask too little of it.

Read `modeling.py` next.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from equilm.nn.equilibrium import Equilibrium, observed
from equilm.solve.iterate import Status

MOST_CAPPED = 0.1  # share of a call's tokens that may end unsolved without a word


@contextmanager
def dialled(
    core: nn.Module, *, tolerance: float | None, max_steps: int | None, window: int | None
) -> Iterator[None]:
    """Solve with these dials inside the block; `None` leaves one as it is, a window of 0 is none.

    Raises:
        ValueError: For a dial of an explicit model, or out of range.
    """
    dials: dict[str, Any] = {"tolerance": tolerance, "max_steps": max_steps, "window": window}
    dials = {name: value for name, value in dials.items() if value is not None}
    if not dials:
        yield
        return
    if not isinstance(core, Equilibrium):
        raise ValueError(f"{next(iter(dials))}: expected none for an explicit model")
    if window is not None:
        if window < 0:
            raise ValueError(f"window: expected an integer >= 0, got {window}")
        dials["window"] = window or None
    before = core.solve
    core.solve = replace(before, **dials)
    try:
        yield
    finally:
        core.solve = before


class Watch:
    """Warns once of a model whose tokens run out of evaluations, which no exception tells."""

    def __init__(self) -> None:
        self.warned = False

    @contextmanager
    def over(self, core: nn.Module) -> Iterator[None]:
        """Look at the solves inside the block, until there was reason to warn."""
        if self.warned or not isinstance(core, Equilibrium):
            yield
            return
        with observed(core) as found:
            yield
        tokens = sum(solution.status.numel() for solution in found)
        # Asked once a call: windows each have a solution of their own.
        capped = int(sum((solution.status == Status.CAPPED).sum() for solution in found))
        if capped > MOST_CAPPED * tokens:
            self.warned = True
            warnings.warn(
                f"{capped:,} of {tokens:,} tokens were not solved in max_steps="
                f"{core.solve.max_steps} evaluations: their logits may be wrong; raise max_steps, "
                "or set window=1, one token after the other",
                stacklevel=3,
            )
