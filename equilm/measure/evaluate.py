"""Model × task × lengths × windows → Records.

A causal model's answers at a length are the prefix of its answers at a greater one, so a single
pass over the longest sequences gives every length. Read `check.py` next.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from equilm.decode.attractors import Attractors, discover, doubts, steady
from equilm.measure.jacobian import jacobian_records
from equilm.nn.equilibrium import Equilibrium, observed
from equilm.nn.model import LanguageModel
from equilm.record import Record
from equilm.solve.iterate import Solution, Solve, Status
from equilm.tasks import Batch, Scores, Task, scores

LAST = 10  # tokens of the published metric, arXiv 2502.07827
TRACE_LENGTH = 24  # tokens of the solve whose residuals are drawn
PIECE = 2**19  # tokens of a batch after which the state is passed on
DRAWN = 2048  # the first tokens, whose own figures are kept


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What to evaluate on, and how far to solve there, with the model's own step rule.

    Args:
        lengths: Prefixes to report, in tokens.
        windows: Tokens solved at once: 1 is the sequential mode; 0 stands for all, the
            simultaneous one. Ignored by explicit models.
        batch_size: Sequences.
        seed: Of the sequences.
        split: Of the task.
        tolerance: Of the solve, relative, ≥ 0. Above 0.01, a window may settle a token that is only
            passing slowly from one answer to another.
        max_steps: Evaluations a token may take, ≥ 1; in the simultaneous mode all of them together.
        precision: Compute type on a GPU; a CPU always computes in float32.
        attractors: Whether to enumerate the states that tokens lead between, and to sweep all
            tokens at once from what they tell; the one window is for what that leaves unsolved.
    """

    lengths: tuple[int, ...] = (16, 64, 256, 1000, 2000)
    windows: tuple[int, ...] = (1,)
    batch_size: int = 16
    seed: int = 0
    split: str = "test"
    tolerance: float = 0.01
    max_steps: int = 64
    precision: Literal["float32", "bf16"] = "float32"
    attractors: bool = False

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"lengths: expected one or more integers >= 1, got {self.lengths}")
        if not self.windows or min(self.windows) < 0:
            raise ValueError(f"windows: expected one or more integers >= 0, got {self.windows}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected an integer >= 1, got {self.batch_size}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps: expected an integer >= 1, got {self.max_steps}")
        if self.attractors and len(self.windows) != 1:
            raise ValueError(f"windows: expected one beside attractors, got {self.windows}")
        Solve(tolerance=self.tolerance)

    @property
    def spans(self) -> tuple[int, ...]:
        """The windows that differ on the longest sequence, none longer than it."""
        longest = max(self.lengths)
        return tuple(dict.fromkeys(min(window or longest, longest) for window in self.windows))

    def limits_of(self, one: Record) -> dict[str, Any]:
        """Return what a Record is to say of the limits of its solve, if it is of one."""
        if one.window is None:
            return {}
        return {"tolerance": self.tolerance, "max_steps": self.max_steps}

    def computing(self, device: torch.device) -> AbstractContextManager[None]:
        """Return the context that models compute in on `device`."""
        uses_bf16 = self.precision == "bf16" and device.type == "cuda"
        return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16)


class Answers(NamedTuple):
    """What a model answered to a batch, token by token, on the host."""

    scores: Scores
    solution: Solution | None  # of the whole batch, without values; none for an explicit model
    seconds: float


def evaluate(
    model: LanguageModel,
    task: Task,
    config: EvaluationConfig,
    *,
    about: Mapping[str, Any] | None = None,
) -> Iterator[Record]:
    """Yield the Records of a model on a task.

    Args:
        model: In evaluation mode, on the device to use. Its solver settings are put back after.
        task: With no more tokens than the model.
        config: Lengths, windows, tolerance.
        about: Further fields of every Record (`model`, `seed` of the run, `step`, `commit`,
            `device`).
    """
    about = {"task": task.name, "split": config.split, **(about or {})}
    for one in _measured(model, task, config):
        yield replace(one, **config.limits_of(one), **about)


@torch.no_grad()
def answer(
    model: LanguageModel,
    batch: Batch,
    solve: Solve | None,
    attractors: Attractors | None = None,
) -> Answers:
    """Answer a batch with these solver settings, or the model's own, and time it."""
    device = model.embedding.device
    batch = Batch(*(part.to(device) for part in batch))
    began = time.perf_counter()
    rows, length = batch.tokens_BT.shape
    at_once = 1 if solve is None else solve.window or length
    # A window may not be cut, but for the end of one that is short beside the piece.
    whole = attractors is not None or 64 * at_once > length
    piece = length if whole else max(1, PIECE // rows)
    state = model.init_state(rows, length) if piece < length else None
    counted, solved = [], []
    with solving(model, solve), observed(model) as solutions:
        for start in range(0, length, piece):
            here = Batch(*(part[:, start : start + piece] for part in batch))
            if attractors is None:
                logits_BTV, state = model(here.tokens_BT, state)
            else:
                logits_BTV = attractors.answer(model, here.tokens_BT)
            # Reading the result waits for the device.
            counted.append(Scores(*(part.cpu() for part in scores(logits_BTV, here))))
            solved += [_without_values(solution) for solution in solutions]
            solutions.clear()
    seconds = time.perf_counter() - began
    return Answers(_joined(counted), _joined_solutions(solved), seconds)


def _without_values(found: Solution) -> Solution:
    steps, status, residual = found.steps.cpu(), found.status.cpu(), found.residual.cpu()
    value = found.value.new_empty(0)
    return Solution(value, status, steps, residual, found.sweeps, found.trace, None)


def _joined(parts: list[Scores]) -> Scores:
    return Scores(*(torch.cat(leaves, dim=1) for leaves in zip(*parts, strict=True)))


def _joined_solutions(parts: list[Solution]) -> Solution | None:
    if not parts:
        return None
    status, steps, residual = (
        torch.cat([getattr(part, name) for part in parts], dim=1)
        for name in ("status", "steps", "residual")
    )
    sweeps = sum(part.sweeps for part in parts)
    return parts[0]._replace(status=status, steps=steps, residual=residual, sweeps=sweeps)


@contextmanager
def solving(model: torch.nn.Module, solve: Solve | None) -> Iterator[None]:
    """Let every equilibrium of a model solve as told inside the block; `None` changes nothing."""
    parts = [part for part in model.modules() if isinstance(part, Equilibrium)]
    before = [part.solve for part in parts]
    try:
        for part in parts:
            part.solve = solve or part.solve
        yield
    finally:
        for part, own in zip(parts, before, strict=True):
            part.solve = own


def _measured(model: LanguageModel, task: Task, config: EvaluationConfig) -> Iterator[Record]:
    longest = max(config.lengths)
    batch = task.batch(
        split=config.split, length=longest, batch_size=config.batch_size, seed=config.seed, index=0
    )
    yield replace(_chance(batch.targets_BT), length=longest)
    core = model.core
    attractors = discover(model) if config.attractors else None
    if not isinstance(core, Equilibrium):
        yield from _reported(answer(model, batch, None), config.lengths, span=None)
        return
    # To ask a CPU costs nothing, and saves sweeps.
    often = core.solve.check_every if model.embedding.is_cuda else 1
    solve = replace(
        core.solve, tolerance=config.tolerance, max_steps=config.max_steps, check_every=often
    )
    if attractors is not None:
        solve = steady(solve)
        for one in _discovered(model, attractors):
            yield replace(one, length=longest, window=longest)
    for span in config.spans:
        answers = answer(model, batch, replace(solve, window=span), attractors)
        span = span if attractors is None else longest
        yield from _reported(answers, config.lengths, span=span)
    tokens_1T = batch.tokens_BT[:1, :TRACE_LENGTH]
    yield from _residuals(model, tokens_1T, solve)
    for one in jacobian_records(model, tokens_1T):
        yield replace(one, length=tokens_1T.shape[1])


def _discovered(model: LanguageModel, found: Attractors) -> Iterator[Record]:
    sweeps, evaluations = float(found.sweeps), float(found.evaluations)
    yield Record(name="attractors", value=float(len(found.next_QV) - 1), unit="states")
    yield Record(name="discovery_sweeps", value=sweeps, unit="evaluations")
    yield Record(name="discovery_evaluations", value=evaluations, unit="evaluations")
    yield Record(name="doubtful_transitions", value=doubts(model, found), unit="share")


def _reported(answers: Answers, lengths: tuple[int, ...], *, span: int | None) -> Iterator[Record]:
    for length in lengths:
        window = None if span is None else min(span, length)
        for one in _totals(answers, length):
            yield replace(one, length=length, window=window)
    for one in _series(answers):
        yield replace(one, length=max(lengths), window=span)


def _totals(answers: Answers, length: int) -> Iterator[Record]:
    correct_BT, counted_BT, loss_BT = (part[:, :length] for part in answers.scores)
    count = counted_BT.sum().clamp(min=1)
    correct_last, counted_last = correct_BT[:, -LAST:].sum(), counted_BT[:, -LAST:].sum()
    yield _share("accuracy", correct_BT.sum() / count)
    yield _share("accuracy_last10", correct_last / counted_last.clamp(min=1))
    yield Record(name="loss", value=_number(loss_BT.sum() / count), unit="nats")
    if answers.solution is None:
        return
    steps_BT = answers.solution.steps[:, :length].float()
    status_BT = answers.solution.status[:, :length]
    yield Record(name="evaluations_per_token", value=_number(steps_BT.mean()), unit="evaluations")
    for status in (Status.CONVERGED, Status.CAPPED, Status.CYCLING):
        yield _share(status.name.lower(), (status_BT == status).float().mean())


def _series(answers: Answers) -> Iterator[Record]:
    correct_BT, counted_BT, _ = answers.scores
    by_position = (correct_BT.sum(0) / counted_BT.sum(0).clamp(min=1))[:DRAWN]
    speed = correct_BT.numel() / answers.seconds
    yield Record(name="tokens_per_second", value=speed, unit="tokens/s")
    yield Record(name="accuracy_by_position", value=by_position.tolist(), unit="share")
    if answers.solution is None:
        return
    sweeps = float(answers.solution.sweeps)
    yield Record(name="dependent_sweeps", value=sweeps, unit="evaluations")
    for row, steps in enumerate(answers.solution.steps[:, :DRAWN].tolist()):
        values = [float(step) for step in steps]
        yield Record(name="evaluations", value=values, unit="evaluations", row=row)


def _residuals(model: LanguageModel, tokens_1T: Tensor, solve: Solve) -> Iterator[Record]:
    """The residual of some tokens, sweep by sweep, all tokens solved at once."""
    length = tokens_1T.shape[1]
    with (
        torch.no_grad(),
        solving(model, replace(solve, window=None)),
        observed(model, trace=True) as found,
    ):
        model(tokens_1T.to(model.embedding.device))
    trace_S1T = found[0].trace
    if trace_S1T is None:
        return
    for token in sorted({0, length // 4, length // 2, 3 * length // 4, length - 1}):
        yield Record(
            name="residual_by_sweep",
            value=trace_S1T[:, 0, token].tolist(),
            unit="1",
            row=token,
            length=length,
            window=length,
        )


def _chance(targets_BT: Tensor) -> Record:
    """The accuracy of always giving the commonest answer."""
    counts = torch.bincount(targets_BT[targets_BT >= 0])
    return _share("chance", counts.max() / counts.sum())


def _share(name: str, value: Tensor) -> Record:
    return Record(name=name, value=_number(value), unit="share")


def _number(value: Tensor) -> float:
    return float(value.item())
