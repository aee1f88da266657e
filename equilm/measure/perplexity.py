"""A language model on text: perplexity by context length and by position, in every mode.

    records = evaluate_text(model, tokens_BT, config, num_bytes=None)

A causal model's losses at a length are the prefix of those at a greater one, so one pass over the
longest rows gives every length. Read `duality.py` next: what is compared between such passes.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from equilm.measure.duality import agreement, by_sweeps, perplexity
from equilm.measure.evaluate import EvaluationConfig, solving
from equilm.nn.equilibrium import Equilibrium, observed
from equilm.nn.model import LanguageModel
from equilm.record import Record
from equilm.solve.iterate import Solution, Solve, Status

TOKENS_AT_ONCE = 1 << 16  # in a forward, unless a row has more
LOGITS_AT_ONCE = 1 << 26  # numbers; the logits of a long row are never whole
FIRST_BIN = 16  # positions; a bin is as long as all before it together


class Reading(NamedTuple):
    """What a model made of rows of text, token by token."""

    loss_BT: Tensor  # float32 nats of the token that followed
    guess_BT: Tensor  # int32, the likeliest token
    steps_BT: Tensor | None  # evaluations; none for an explicit model
    status_BT: Tensor | None
    sweeps: int  # evaluations that depended on each other, the most of all batches
    seconds: float


def evaluate_text(
    model: LanguageModel,
    tokens_BT: Tensor,
    config: EvaluationConfig,
    *,
    num_bytes: Callable[[Sequence[int]], int | None],
    sweeps: tuple[int, ...] = (),
) -> Iterator[Record]:
    """Yield the Records of a model on rows of text.

    Args:
        model: In evaluation mode, on the device to use. Its solver settings are put back after.
        tokens_BT: (B, T + 1) int64, T the longest of the lengths; a row is of one document.
        config: Lengths, windows (the first is what the others are compared with), tolerance.
        num_bytes: Bytes that all but the first of some tokens stand for, if they are text.
        sweeps: Evaluations a token to try instead of solving, ≥ 1.

    Raises:
        ValueError: For a token that the model does not know, or no sweeps at all.
    """
    if sweeps and min(sweeps) < 1:
        raise ValueError(f"sweeps: expected integers >= 1, got {sweeps}")
    if int(tokens_BT.max()) >= model.vocab_size:
        raise ValueError(
            f"tokenizer: expected ids below {model.vocab_size}, the vocabulary of the model, "
            f"got {int(tokens_BT.max())}"
        )
    rows = [row.tolist() for row in tokens_BT]
    sizes = {n: [num_bytes(row[: n + 1]) for row in rows] for n in config.lengths}
    for one in _in_every_mode(model, tokens_BT, config, sizes):
        yield replace(one, **config.limits_of(one))
    if isinstance(model.core, Equilibrium) and sweeps:
        tokens_BT = tokens_BT[:, : min(config.lengths) + 1]
        for span, solve in _solves(model, replace(config, lengths=(min(config.lengths),))):
            assert solve is not None
            if span not in (1, min(config.lengths)):
                continue  # a window evaluates its tokens more often than told
            yield from by_sweeps(
                lambda limited: read(model, tokens_BT, limited).loss_BT, solve, sweeps, span
            )


def _in_every_mode(
    model: LanguageModel,
    tokens_BT: Tensor,
    config: EvaluationConfig,
    sizes: dict[int, list[int | None]],
) -> Iterator[Record]:
    readings = {}
    for span, solve in _solves(model, config):
        readings[span] = reading = read(model, tokens_BT, solve)
        yield from _reported(reading, config.lengths, sizes, span)
    yield from agreement(readings, config.lengths)


@torch.no_grad()
def read(model: LanguageModel, tokens_BT: Tensor, solve: Solve | None) -> Reading:
    """Read rows of text with these solver settings, or the model's own, and time it.

    Args:
        model: In evaluation mode.
        tokens_BT: (B, T + 1): T tokens a row, and one more as the last target.
        solve: How to solve.
    """
    began = time.perf_counter()
    size = max(1, TOKENS_AT_ONCE // tokens_BT.shape[1])
    losses, guesses, solutions = [], [], []
    for some_BT in tokens_BT.to(model.embedding.device).split(size):
        with solving(model, solve), observed(model) as found:
            z_BTD, _ = model.core(model.embed(some_BT[:, :-1]))
        loss_BT, guess_BT = _judge(model, z_BTD, some_BT[:, 1:])
        losses.append(loss_BT)
        guesses.append(guess_BT)
        solutions += found
    steps_BT, status_BT = _effort(solutions)
    return Reading(
        torch.cat(losses).cpu(),
        torch.cat(guesses).cpu(),
        steps_BT,
        status_BT,
        sweeps=max((found.sweeps for found in solutions), default=1),
        seconds=time.perf_counter() - began,
    )


def edges(length: int) -> list[int]:
    """Return where bins of positions begin and, last, end: 0, 16, 32, 64, … and the length."""
    inner = []
    edge = FIRST_BIN
    while edge < length:
        inner.append(edge)
        edge *= 2
    return [0, *inner, length]


def _judge(model: LanguageModel, z_BTD: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    size = max(1, LOGITS_AT_ONCE // (len(z_BTD) * model.vocab_size))
    losses, guesses = [], []
    for z, targets in zip(z_BTD.split(size, 1), targets_BT.split(size, 1), strict=True):
        logits_BTV = model.logits(z)
        chosen_BT = logits_BTV.gather(-1, targets[..., None])[..., 0]
        losses.append(logits_BTV.logsumexp(-1) - chosen_BT)
        guesses.append(logits_BTV.argmax(-1).int())
    return torch.cat(losses, 1), torch.cat(guesses, 1)


def _effort(solutions: list[Solution]) -> tuple[Tensor | None, Tensor | None]:
    if not solutions:
        return None, None
    steps_BT = torch.cat([found.steps for found in solutions]).cpu()
    return steps_BT, torch.cat([found.status for found in solutions]).cpu()


def _solves(
    model: LanguageModel, config: EvaluationConfig
) -> Iterator[tuple[int | None, Solve | None]]:
    """The windows to try and what they mean for the solve; none of either for an explicit model."""
    if not isinstance(model.core, Equilibrium):
        yield None, None
        return
    solve = replace(model.core.solve, tolerance=config.tolerance, max_steps=config.max_steps)
    for span in config.spans:
        yield span, replace(solve, window=span)


def _reported(
    reading: Reading,
    lengths: tuple[int, ...],
    sizes: dict[int, list[int | None]],
    span: int | None,
) -> Iterator[Record]:
    for length in lengths:
        window = None if span is None else min(span, length)
        for one in _totals(reading, length, sizes[length]):
            yield replace(one, length=length, window=window, batch=len(reading.loss_BT))
    for one in _series(reading):
        yield replace(one, length=max(lengths), window=span, batch=len(reading.loss_BT))


def _totals(reading: Reading, length: int, sizes: list[int | None]) -> Iterator[Record]:
    loss_BT = reading.loss_BT[:, :length]
    yield Record(name="loss", value=loss_BT.double().mean().item(), unit="nats")
    yield Record(name="perplexity", value=perplexity(loss_BT), unit="1")
    known = [size for size in sizes if size is not None]
    if known and sum(known) > 0:
        bits = loss_BT.double().sum().item() / math.log(2)
        yield Record(name="bits_per_byte", value=bits / sum(known), unit="bits/byte")
    if reading.steps_BT is None or reading.status_BT is None:
        return
    steps_BT, status_BT = reading.steps_BT[:, :length], reading.status_BT[:, :length]
    mean = steps_BT.float().mean().item()
    yield Record(name="evaluations_per_token", value=mean, unit="evaluations")
    for status in (Status.CONVERGED, Status.CAPPED, Status.CYCLING):
        share = (status_BT == status).float().mean().item()
        yield Record(name=status.name.lower(), value=share, unit="share")


def _series(reading: Reading) -> Iterator[Record]:
    bounds = edges(reading.loss_BT.shape[1])
    yield Record(name="position_bins", value=[float(edge) for edge in bounds], unit="tokens")
    losses = _binned(reading.loss_BT, bounds)
    yield Record(name="loss_by_position", value=losses, unit="nats")
    speed = reading.loss_BT.numel() / reading.seconds
    yield Record(name="tokens_per_second", value=speed, unit="tokens/s")
    if reading.steps_BT is not None:
        steps = _binned(reading.steps_BT, bounds)
        yield Record(name="evaluations_by_position", value=steps, unit="evaluations")
        yield Record(name="dependent_sweeps", value=float(reading.sweeps), unit="evaluations")


def _binned(values_BT: Tensor, bounds: list[int]) -> list[float]:
    return [values_BT[:, low:high].double().mean().item() for low, high in pairwise(bounds)]
