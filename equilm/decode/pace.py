"""How much an engine does at once unless it is told, by the device. Read `engine.py` next."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Sizes that change how fast answers come; the answers are the same to the tolerance.

    Args:
        window: Tokens of a prompt that are solved at once, ≥ 1.
        chunk: Tokens of a prompt that are taken in between sweeps of the running, ≥ 1.
        check_every: Sweeps between two looks at what has settled, ≥ 1.

    Raises:
        ValueError: For a number out of range.
    """

    window: int
    chunk: int
    check_every: int

    def __post_init__(self) -> None:
        for name in ("window", "chunk", "check_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")


def pace_of(
    device: torch.device,
    *,
    implicit: bool,
    window: int | None,
    chunk: int | None,
    check_every: int | None,
) -> Pace:
    """Return what was asked for, and what is good for a device where nothing was.

    On a GPU a window of 2,048 tokens takes little longer than one of 64, and every look at it costs
    the time of a sweep (docs/performance.md); on a CPU neither is so. An explicit model
    is solved by one sweep, so that a second before a look would be for nothing.
    """
    own = Pace(window=64, chunk=256, check_every=1)
    if device.type == "cuda":
        own = Pace(window=2048, chunk=2048, check_every=2 if implicit else 1)
    return Pace(
        window=own.window if window is None else window,
        chunk=own.chunk if chunk is None else chunk,
        check_every=own.check_every if check_every is None else check_every,
    )
