"""Model × task × lengths × windows → Records.

A causal model's answers at a length are the prefix of its answers at a greater one, so a single
pass over the longest sequences gives every length. Read `check.py` next.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from equilm.nn.equilibrium import Equilibrium, observed
from equilm.nn.model import LanguageModel
from equilm.record import Record
from equilm.solve.iterate import Solution, Solve, Status
from equilm.tasks import Scores, Task, scores

LAST = 10  # tokens of the published metric, arXiv 2502.07827
TRACE_LENGTH = 24  # tokens of the solve whose residuals are drawn


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What to evaluate on, and how to solve there.

    Args:
        lengths: Prefixes to report, in tokens.
        windows: Tokens solved at once: 1 is the sequential mode; 0 stands for all, the
            simultaneous one. Ignored by explicit models.
        batch_size: Sequences.
        seed: Of the sequences.
        split: Of the task.
        solve: Tolerance and limits of an implicit model; its window is not read.
    """

    lengths: tuple[int, ...] = (16, 64, 256, 1000, 2000)
    windows: tuple[int, ...] = (1,)
    batch_size: int = 16
    seed: int = 0
    split: str = "test"
    solve: Solve = Solve(tolerance=0.05, max_steps=64)

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"lengths: expected one or more integers >= 1, got {self.lengths}")
        if not self.windows or min(self.windows) < 0:
            raise ValueError(f"windows: expected one or more integers >= 0, got {self.windows}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected an integer >= 1, got {self.batch_size}")


class Answers(NamedTuple):
    """What a model answered to a batch, token by token."""

    scores: Scores
    solution: Solution | None  # of the whole batch; none for an explicit model
    seconds: float


@torch.no_grad()
def evaluate(
    model: LanguageModel, task: Task, config: EvaluationConfig, **about: Any
) -> Iterator[Record]:
    """Yield the Records of a model on a task.

    Args:
        model: In evaluation mode, on the device to use. Its solver settings are put back after.
        task: With no more tokens than the model.
        config: Lengths, windows and solver.
        about: Further fields of every Record (`model`, `step`, `commit`, `device`).
    """
    longest = max(config.lengths)
    batch = task.batch(
        split=config.split,
        length=longest,
        batch_size=config.batch_size,
        seed=config.seed,
        index=0,
    )
    about = {**about, "task": task.name, "split": config.split, "seed": config.seed}
    yield _chance(batch.targets_BT, **about)
    implicit = isinstance(model.core, Equilibrium)
    for window in dict.fromkeys(config.windows) if implicit else (None,):
        span = longest if window == 0 else window
        answers = answer(model, batch, replace(config.solve, window=span))
        for length in config.lengths:
            at = None if span is None else min(span, length)
            yield from _totals(answers, length, window=at, **about)
        at = None if span is None else min(span, longest)
        yield from _series(answers, length=longest, window=at, **about)
    if implicit:
        length = min(TRACE_LENGTH, longest)
        yield from _residuals(model, batch.tokens_BT[:, :length], config.solve, **about)


@torch.no_grad()
def answer(model: LanguageModel, batch: Any, solve: Solve) -> Answers:
    """Answer a batch with these solver settings, and time it."""
    device = model.embedding.device
    tokens_BT, targets_BT = (part.to(device) for part in batch)
    began = time.perf_counter()
    with solving(model, solve), observed(model) as solutions:
        logits_BTV, _ = model(tokens_BT)
    result = scores(logits_BTV, type(batch)(tokens_BT, targets_BT))
    counted = Scores(*(part.cpu() for part in result))
    return Answers(counted, solutions[0] if solutions else None, time.perf_counter() - began)


class solving:  # noqa: N801
    """Context: every equilibrium of a model solves as told, and as before afterwards."""

    def __init__(self, model: torch.nn.Module, solve: Solve) -> None:
        self.parts = [part for part in model.modules() if isinstance(part, Equilibrium)]
        self.solve, self.before = solve, [part.solve for part in self.parts]

    def __enter__(self) -> None:
        for part in self.parts:
            part.solve = self.solve

    def __exit__(self, *_: object) -> None:
        for part, before in zip(self.parts, self.before, strict=True):
            part.solve = before


def _totals(answers: Answers, length: int, **about: Any) -> Iterator[Record]:
    about = {**about, "length": length}
    correct_BT, counted_BT, loss_BT = (part[:, :length] for part in answers.scores)
    count = counted_BT.sum().clamp(min=1)
    last = counted_BT[:, -LAST:].sum().clamp(min=1)
    yield Record(name="accuracy", value=_number(correct_BT.sum() / count), unit="share", **about)
    yield Record(
        name="accuracy_last10",
        value=_number(correct_BT[:, -LAST:].sum() / last),
        unit="share",
        **about,
    )
    yield Record(name="loss", value=_number(loss_BT.sum() / count), unit="nats", **about)
    if answers.solution is None:
        return
    steps_BT, status_BT = (
        answers.solution.steps[:, :length].float(),
        answers.solution.status[:, :length],
    )
    yield Record(
        name="evaluations_per_token",
        value=_number(steps_BT.mean()),
        unit="evaluations",
        **about,
    )
    for status in (Status.CONVERGED, Status.CAPPED, Status.CYCLING):
        share = _number((status_BT == status).float().mean())
        yield Record(name=status.name.lower(), value=share, unit="share", **about)


def _series(answers: Answers, **about: Any) -> Iterator[Record]:
    correct_BT, counted_BT, _ = answers.scores
    by_position = correct_BT.sum(0) / counted_BT.sum(0).clamp(min=1)
    speed = correct_BT.numel() / answers.seconds
    yield Record(name="tokens_per_second", value=speed, unit="tokens/s", **about)
    yield Record(
        name="accuracy_by_position", value=by_position.tolist(), unit="share", **about
    )
    if answers.solution is None:
        return
    sweeps = float(answers.solution.sweeps)
    yield Record(name="dependent_sweeps", value=sweeps, unit="evaluations", **about)
    for row, steps in enumerate(answers.solution.steps.tolist()):
        values = [float(step) for step in steps]
        yield Record(name="evaluations", value=values, unit="evaluations", row=row, **about)


def _residuals(
    model: LanguageModel, tokens_BT: Tensor, solve: Solve, **about: Any
) -> Iterator[Record]:
    """The residual of some tokens, sweep by sweep, all tokens solved at once."""
    length = tokens_BT.shape[1]
    with solving(model, replace(solve, window=None)), observed(model, trace=True) as found:
        model(tokens_BT[:1].to(model.embedding.device))
    trace_ST = found[0].trace
    assert trace_ST is not None
    for token in sorted({0, length // 4, length // 2, 3 * length // 4, length - 1}):
        yield Record(
            name="residual_by_sweep",
            value=trace_ST[:, 0, token].tolist(),
            unit="1",
            row=token,
            length=length,
            window=length,
            **about,
        )


def _chance(targets_BT: Tensor, **about: Any) -> Record:
    """The accuracy of always giving the commonest answer."""
    counts = torch.bincount(targets_BT[targets_BT >= 0])
    return Record(
        name="chance", value=_number(counts.max() / counts.sum()), unit="share", **about
    )


def _number(value: Tensor) -> float:
    return float(value.item())
