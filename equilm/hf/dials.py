"""The dials of a solve for one call: quality against speed. Read `modeling.py` next."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from equilm.nn.equilibrium import Equilibrium


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
    if "window" in dials:
        dials["window"] = dials["window"] or None
    before = core.solve
    core.solve = replace(before, **dials)
    try:
        yield
    finally:
        core.solve = before
