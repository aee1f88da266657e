"""Questions of stories, scored by what they are about and by how long the story was.

A question is right if every word of its answer is. Read `evaluate.py` for tasks without stories.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from equilm.measure.evaluate import answer
from equilm.nn.equilibrium import Equilibrium
from equilm.nn.model import LanguageModel
from equilm.record import Record
from equilm.solve.iterate import Solve
from equilm.tasks import Labels, StoryTask


@dataclass(frozen=True, kw_only=True)
class StoryScores:
    """Which rows of a story task to score, and how far to solve there.

    Args:
        length: Words a row, ≥ 1.
        batch_size: Rows at once, ≥ 1.
        max_batches: At most so many of the batches of a pass over the split; `None` is all.
        window: Words solved at once: 1 is the sequential mode, `None` the simultaneous one.
        tolerance: Of the solve, relative, ≥ 0.
        max_steps: Evaluations a word may take, ≥ 0; in the simultaneous mode all of them together.
        split: Of the task.
        seed: Of the order of the stories.
    """

    length: int = 512
    batch_size: int = 64
    max_batches: int | None = None
    window: int | None = None
    tolerance: float = 0.01
    max_steps: int = 64
    split: str = "test"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("length", "batch_size", "max_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {value}")

    def records(self, model: LanguageModel, task: StoryTask) -> Iterator[Record]:
        """Yield accuracy and evaluations of all questions, by label and by length of the story.

        Series are indexed by the label itself, and by k for stories of 2^k up to 2^(k+1) words.

        Args:
            model: In evaluation mode, on the device to use.
            task: With no more words than the model.
        """
        rows = task.num_rows(split=self.split, length=self.length, seed=self.seed)
        batches = -(-rows // self.batch_size)
        found = [
            self._questions(model, task, index, rows - index * self.batch_size)
            for index in range(min(batches, self.max_batches or batches))
        ]
        whole = Questions(*(torch.cat(parts) for parts in zip(*found, strict=True)))
        about: dict[str, Any] = {"length": self.length, "task": task.name, "split": self.split}
        implicit = isinstance(model.core, Equilibrium)
        if implicit:
            window = self.length if self.window is None else self.window
            about |= {"window": window, "tolerance": self.tolerance, "max_steps": self.max_steps}
        for one in _summary(whole, task, implicit=implicit):
            yield replace(one, **about)

    def _questions(
        self, model: LanguageModel, task: StoryTask, index: int, rows: int
    ) -> "Questions":
        where = {"split": self.split, "length": self.length, "batch_size": self.batch_size}
        position = {**where, "seed": self.seed, "index": index}
        batch, labels = task.batch(**position), task.labels(**position)  # type: ignore[arg-type]
        solve = self._solve(model)
        answers = answer(model, batch, solve)
        steps_BT = torch.ones_like(batch.tokens_BT)
        if answers.solution is not None:
            steps_BT = answers.solution.steps.cpu().long()
        correct_BT, counted_BT, _ = answers.scores
        # The last batch goes on with the next pass.
        kept = slice(0, rows)
        return questions(
            correct_BT[kept], counted_BT[kept], steps_BT[kept], Labels(*(p[kept] for p in labels))
        )

    def _solve(self, model: LanguageModel) -> Solve | None:
        core = model.core
        if not isinstance(core, Equilibrium):
            return None
        return replace(
            core.solve, tolerance=self.tolerance, max_steps=self.max_steps, window=self.window
        )


class Questions(NamedTuple):
    """One entry a question."""

    right: Tensor  # bool
    steps: Tensor  # evaluations of the word that is answered at, float32
    label: Tensor
    position: Tensor  # words of the story up to there


def questions(
    correct_BT: Tensor, counted_BT: Tensor, steps_BT: Tensor, labels: Labels
) -> Questions:
    """Put neighbouring targets together to questions, right if all of them are.

    Args:
        correct_BT: Which tokens are answered right.
        counted_BT: Which are asked.
        steps_BT: Evaluations they took.
        labels: Of the same tokens.

    Returns:
        The Questions, row by row.
    """
    before_BT = torch.cat([torch.zeros_like(counted_BT[:, :1]), counted_BT[:, :-1]], dim=1)
    begins_BT = counted_BT & ~before_BT
    number_BT = begins_BT.flatten().long().cumsum(0).view_as(begins_BT) - 1
    count = int(begins_BT.sum())
    wrong = torch.zeros(count, dtype=torch.int64)
    wrong.index_add_(0, number_BT[counted_BT], (~correct_BT)[counted_BT].long())
    return Questions(
        right=wrong == 0,
        steps=steps_BT[begins_BT].float(),
        label=labels.label_BT[begins_BT],
        position=labels.position_BT[begins_BT],
    )


def _summary(found: Questions, task: StoryTask, *, implicit: bool) -> Iterator[Record]:
    right = found.right.float()
    yield Record(name="accuracy", value=float(right.mean()), unit="share")
    yield Record(name="questions", value=float(right.numel()), unit="count")
    # In float64, so that a power of two falls into its own bin.
    by_length = found.position.double().log2().floor().long()
    for name, index in ((task.label, found.label), ("story_length", by_length)):
        count = torch.bincount(index).float()
        series = {"accuracy": right, "evaluations": found.steps}
        yield Record(name=f"questions_by_{name}", value=count.tolist(), unit="count")
        for what, values in series.items():
            if what == "accuracy" or implicit:
                # A bin without questions is not a number.
                mean = torch.bincount(index, values.double()) / count
                unit = "share" if what == "accuracy" else "evaluations"
                yield Record(name=f"{what}_by_{name}", value=mean.tolist(), unit=unit)
