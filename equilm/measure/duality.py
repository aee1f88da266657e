"""Two modes of one model against each other, and few evaluations against many.

The duality says that solving all tokens at once, one by one or in windows gives one answer; what a
tolerance, a bounded number of evaluations and fixed points that are not unique leave of it is
measured here. Read `harness.py` next.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from equilm.record import Record
from equilm.solve.iterate import Solve


class Read(Protocol):
    """What a mode made of rows of text (`perplexity.Reading`)."""

    @property
    def loss_BT(self) -> Tensor:
        """Nats of each token."""

    @property
    def guess_BT(self) -> Tensor:
        """The likeliest token after each."""


def agreement(readings: Mapping[int | None, Read], lengths: tuple[int, ...]) -> Iterator[Record]:
    """Compare every mode with the first.

    Args:
        readings: By window, of the same rows.
        lengths: Prefixes to report, in tokens.

    Yields:
        `same_argmax`, the share of tokens after which both modes find the same token likeliest,
        and `perplexity_difference`, the mode's perplexity less the first one's.
    """
    (_, first), *others = readings.items()
    for window, other in others:
        for length in lengths:
            assert window is not None
            same_BT = first.guess_BT[:, :length] == other.guess_BT[:, :length]
            at = Record(
                name="same_argmax",
                value=same_BT.float().mean().item(),
                unit="share",
                length=length,
                window=min(window, length),
            )
            yield at
            apart = perplexity(other.loss_BT[:, :length]) - perplexity(first.loss_BT[:, :length])
            yield replace(at, name="perplexity_difference", value=apart, unit="1")


def by_sweeps(
    losses: Callable[[Solve], Tensor], solve: Solve, sweeps: tuple[int, ...], window: int | None
) -> Iterator[Record]:
    """Yield the perplexity after a given number of evaluations a token, whatever its residual.

    In simultaneous mode these are sweeps over the whole sequence. The last evaluation gives the
    output, so that one evaluation is F of where the solve starts.

    Args:
        losses: The loss of every token, solved as told.
        solve: Whose step rule and window to take.
        sweeps: How many evaluations to try, each ≥ 1.
        window: Tokens solved at once.
    """
    for count in sweeps:
        limited = replace(solve, tolerance=0.0, max_steps=count - 1, cycle=None)
        loss_BT = losses(limited)
        yield Record(
            name="perplexity_at_sweeps",
            value=perplexity(loss_BT),
            unit="1",
            sweeps=count,
            length=loss_BT.shape[1],
            window=window,
            tolerance=limited.tolerance,
            max_steps=limited.max_steps,
            batch=len(loss_BT),
        )


def perplexity(loss_BT: Tensor) -> float:
    """Return exp of the mean loss, infinite where no number holds it."""
    return loss_BT.double().mean().exp().item()
