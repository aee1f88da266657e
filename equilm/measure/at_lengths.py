"""Accuracy at each length on sequences of that length, in pieces that pass the state on.

`evaluate.py` takes prefixes of long sequences, which suits tasks that ask all along; here the end
alone may be asked, and a sequence may be longer than fits. Read `throughput.py` next.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log
from typing import Any

import torch
from torch import Tensor

from equilm import tree
from equilm.measure.evaluate import LAST, solving
from equilm.nn.equilibrium import Equilibrium
from equilm.nn.model import LanguageModel
from equilm.record import Record
from equilm.solve.iterate import Solve
from equilm.tasks import Batch, Scores, Task, scores

LOGITS = 2**24  # numbers that are there at once


@dataclass(frozen=True, kw_only=True)
class AtLengths:
    """What to measure, and how far to solve, with the model's own step rule.

    Args:
        lengths: Of sequences, each measured by itself.
        batch_size: Sequences a length.
        piece: Tokens after which the state is passed on; of attention it grows all the same.
        window: Tokens solved at once; `None` stands for a whole piece. Ignored by explicit models.
        seed: Of the sequences.
        split: Of the task.
        tolerance: Of the solve, relative, ≥ 0.
        max_steps: Evaluations a token may take, ≥ 0.
    """

    lengths: tuple[int, ...]
    batch_size: int = 64
    piece: int = 2048
    window: int | None = None
    seed: int = 0
    split: str = "test"
    tolerance: float = 0.01
    max_steps: int = 64

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"lengths: expected one or more integers >= 1, got {self.lengths}")
        for name in ("batch_size", "piece"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")
        Solve(tolerance=self.tolerance, max_steps=self.max_steps, window=self.window)

    def records(self, model: LanguageModel, task: Task) -> Iterator[Record]:
        """Yield accuracy, accuracy of the last ten tokens, loss, and bits a token, by length."""
        for length in self.lengths:
            batch = task.batch(
                split=self.split,
                length=length,
                batch_size=self.batch_size,
                seed=self.seed,
                index=0,
            )
            about: dict[str, Any] = {"task": task.name, "split": self.split, "length": length}
            if isinstance(model.core, Equilibrium):
                about["window"] = min(self.window or length, self.piece, length)
                about |= {"tolerance": self.tolerance, "max_steps": self.max_steps}
            for one in _told(self._answered(model, batch)):
                yield replace(one, **about)

    @torch.no_grad()
    def _answered(self, model: LanguageModel, batch: Batch) -> Scores:
        """Score all rows, some at once."""
        solve = None
        if isinstance(model.core, Equilibrium):
            solve = replace(
                model.core.solve,
                tolerance=self.tolerance,
                max_steps=self.max_steps,
                window=self.window,
            )
        tokens = min(self.piece, batch.tokens_BT.shape[1])
        rows = max(1, LOGITS // (tokens * model.vocab_size))
        with solving(model, solve):
            found = [
                self._in_pieces(model, tree.map_(lambda part, at=at: part[at : at + rows], batch))
                for at in range(0, len(batch.tokens_BT), rows)
            ]
        return Scores(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _in_pieces(self, model: LanguageModel, batch: Batch) -> Scores:
        count, length = batch.tokens_BT.shape
        device, state = model.embedding.device, None
        if length > self.piece:
            state = model.init_state(count, length)
        found = []
        for start in range(0, length, self.piece):
            piece = tree.map_(
                lambda part, start=start: part[:, start : start + self.piece].to(device), batch
            )
            logits_BTV, state = model(piece.tokens_BT, state)
            found.append(tree.map_(Tensor.cpu, scores(logits_BTV, piece)))
        return Scores(*(torch.cat(parts, dim=1) for parts in zip(*found, strict=True)))


def _told(found: Scores) -> Iterator[Record]:
    correct_BT, counted_BT, loss_BT = found
    for name, last in (("accuracy", 0), (f"accuracy_last{LAST}", LAST)):
        counted = counted_BT[:, -last:].sum().clamp(min=1)
        share = float(correct_BT[:, -last:].sum() / counted)
        yield Record(name=name, value=share, unit="share")
    nats = float(loss_BT.sum(dtype=torch.float64) / counted_BT.sum().clamp(min=1))
    yield Record(name="loss", value=nats, unit="nats")
    yield Record(name="bits", value=nats / log(2), unit="bits")
