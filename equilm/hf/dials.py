"""The dials of a solve for one call, and a word where they ask too little of it.

Read `modeling.py` next.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

from torch import nn

from equilm.nn.equilibrium import Equilibrium, observed
from equilm.solve.iterate import Status

MOST_CAPPED = 0.1  # share of a call's tokens that may end unsolved without a word

# Whose frames lie between a solve and the line of the user's that asked for it.
BETWEEN = {"accelerate", "contextlib", "equilm", "peft", "torch", "transformers"}


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
    for name, value in dials.items():
        _check(name, value)
    if window is not None:
        dials["window"] = window or None
    before = core.solve
    core.solve = replace(before, **dials)
    try:
        yield
    finally:
        core.solve = before


def _check(name: str, value: object) -> None:
    least = 1 if name == "max_steps" else 0
    kind, said = (Real, "a number") if name == "tolerance" else (Integral, "an integer")
    if isinstance(value, bool) or not isinstance(value, kind) or not float(value) >= least:
        raise ValueError(f"{name}: expected {said} >= {least}, got {value!r}")


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
                stacklevel=_level(),
            )


def _level() -> int:
    """The `stacklevel` at which a warning points to the user's own line."""
    level, frame = 0, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in BETWEEN:
        level, frame = level + 1, frame.f_back
    return level + 1
