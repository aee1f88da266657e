"""Tasks made of stories in words: rows packed with whole stories, answers asked where they follow.

What CatbAbI, boxes and shuffled objects share: a vocabulary, a shuffled order of the stories, rows
cut from it, and labels (which task, how long a story, how many operations) to score answers by. Not
here: any file format. Next: `catbabi.py`.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from equilm.tasks.task import IGNORE, Batch, Task, check_position, position_generator

END = "<eos>"  # after every story
Mode = Literal["question", "language"]


class Story(NamedTuple):
    """Words, and which of them answer.

    Args:
        words: of the story, without END.
        answers: places, at least 1, of the words that answer or are part of an answer;
            `len(words)` is that of END, where it closes one.
        label: what its answers are to be scored by, at least 0.
    """

    words: Sequence[str]
    answers: Sequence[int]
    label: int


class _Stories(NamedTuple):
    """All stories of a split, one after the other, with END."""

    tokens_N: Tensor  # int64
    targets_N: Tensor  # int64, the next token, or IGNORE
    labels_N: Tensor  # int64
    ends_M: list[int]


class _Row(NamedTuple):
    """Pieces of the stories of a split that make a row, and how much of it may be asked."""

    pieces: list[slice]
    complete: int


class StoryTask(Task):
    """Batches of rows of T words that begin with a story and hold as many as fit.

    The story at the end of a row that does not fit is begun and not asked; the next row begins
    with it. So each question is asked once in a pass over a split, with its story before it, unless
    the story is longer than a row. The target of a word is the next word.

    Args:
        name: of the task.
        stories: of each split.
        mode: `question` asks for words of answers alone, `language` for every word of a story.
        label: what `Story.label` tells.
    """

    def __init__(
        self, name: str, stories: Mapping[str, Sequence[Story]], *, mode: Mode, label: str
    ) -> None:
        self.name, self.mode, self.label = f"{name} {mode}", mode, label
        self.splits = tuple(split for split, told in stories.items() if told)
        found: set[str] = set()
        for story in chain.from_iterable(stories.values()):
            found.update(story.words)
        self.words = (END, *sorted(found - {END}))
        self.vocab_size = len(self.words)
        self._stories = {split: self._encode(told) for split, told in stories.items() if told}
        self._plans: dict[tuple[str, int, int, int], tuple[list[int], list[int]]] = {}

    @abstractmethod
    def describe(self, label: int) -> str:
        """Return a label in words, such as "qa3"."""

    def batch(self, *, split: str, length: int, batch_size: int, seed: int, index: int) -> Batch:
        """Rows `index · B` to `index · B + B - 1` of an endless stream, shuffled in every pass.

        Args:
            split: one of `splits`.
            length: T, words a row, at least 1.
            batch_size: B, rows, at least 1.
            seed: of the order of the stories.
            index: position in the stream, at least 0.

        Returns:
            A Batch; IGNORE where nothing is asked.

        Raises:
            ValueError: an argument outside its range.
        """
        rows = self._rows(split, length, batch_size, seed, index)
        stories = self._stories[split]
        tokens_BT = _laid_out(stories.tokens_N, rows, length)
        targets_BT = _laid_out(stories.targets_N, rows, length)
        complete_B1 = torch.tensor([[row.complete] for row in rows])
        return Batch(tokens_BT, targets_BT.where(torch.arange(length) < complete_B1, IGNORE))

    def labels(self, *, split: str, length: int, batch_size: int, seed: int, index: int) -> Labels:
        """What the questions of `batch` with the same arguments are to be scored by.

        Args and raises as `batch`.

        Returns:
            Labels of every token, asked or not.
        """
        rows = self._rows(split, length, batch_size, seed, index)
        position_BT = torch.zeros(batch_size, length, dtype=torch.int64)
        for row, into_T in zip(rows, position_BT, strict=True):
            sizes = [piece.stop - piece.start for piece in row.pieces]
            counts = torch.cat([torch.arange(1, size + 1) for size in sizes])
            into_T.copy_(counts[:length])
        return Labels(_laid_out(self._stories[split].labels_N, rows, length), position_BT)

    def num_rows(self, *, split: str, length: int, seed: int) -> int:
        """Return the rows of one pass over a split.

        Raises:
            ValueError: an argument outside its range.
        """
        self._check(split, length, 1, 0)
        return len(self._plan(split, length, seed, 0)[1])

    def _check(self, split: str, length: int, batch_size: int, index: int) -> None:
        check_position(split=split, length=length, batch_size=batch_size, index=index)
        if split not in self.splits:
            raise ValueError(f"split: expected one of {', '.join(self.splits)}; got {split!r}")

    def _encode(self, told: Sequence[Story]) -> _Stories:
        index = {word: number for number, word in enumerate(self.words)}
        sizes = [len(story.words) + 1 for story in told]
        ends_M = list(accumulate(sizes))
        tokens = array("q")
        asked_N = torch.full((ends_M[-1],), self.mode == "language")
        for story, end, size in zip(told, ends_M, sizes, strict=True):
            tokens.extend(map(index.__getitem__, story.words))
            tokens.append(index[END])
            # A word is asked for at the word before it; what follows END cannot be known.
            asked_N[[end - size + place - 1 for place in story.answers]] = True
            asked_N[end - 1] = False
        tokens_N = torch.frombuffer(tokens, dtype=torch.int64)
        targets_N = tokens_N.roll(-1).where(asked_N, IGNORE)
        labels_N = torch.tensor([story.label for story in told])
        labels_N = labels_N.repeat_interleave(torch.tensor(sizes))
        return _Stories(tokens_N, targets_N, labels_N, ends_M)

    def _rows(self, split: str, length: int, batch_size: int, seed: int, index: int) -> list[_Row]:
        self._check(split, length, batch_size, index)
        num_rows = len(self._plan(split, length, seed, 0)[1])
        found = []
        for number in range(index * batch_size, (index + 1) * batch_size):
            # A later pass may have a row more or less than the first, which sets the pace.
            order, firsts = self._plan(split, length, seed, number // num_rows)
            first = firsts[number % num_rows % len(firsts)]
            found.append(self._row(split, length, order, first))
        return found

    def _row(self, split: str, length: int, order: list[int], first: int) -> _Row:
        ends, pieces, filled, complete = self._stories[split].ends_M, [], 0, 0
        while filled < length:
            story = order[first % len(order)]
            pieces.append(slice(ends[story - 1] if story else 0, ends[story]))
            filled += ends[story] - pieces[-1].start
            # Past the end of a pass the row is filled up with what is not asked again.
            if first < len(order) and (filled <= length or len(pieces) == 1):
                complete = min(filled, length)
            first += 1
        return _Row(pieces, complete)

    def _plan(self, split: str, length: int, seed: int, epoch: int) -> tuple[list[int], list[int]]:
        """The order of the stories in a pass, and the place in it where each row begins."""
        key = (split, length, seed, epoch)
        if key not in self._plans:
            if len(self._plans) > 8:
                self._plans.clear()
            self._plans[key] = self._make_plan(*key)
        return self._plans[key]

    def _make_plan(
        self, split: str, length: int, seed: int, epoch: int
    ) -> tuple[list[int], list[int]]:
        ends = self._stories[split].ends_M
        sizes = [end - before for before, end in zip([0, *ends], ends, strict=False)]
        generator = position_generator(split=split, length=1, seed=seed, index=epoch)
        order = torch.randperm(len(ends), generator=generator).tolist()
        through = list(accumulate(sizes[story] for story in order))
        firsts, first = [], 0
        while first < len(order):
            firsts.append(first)
            begun = through[first] - sizes[order[first]]
            first = max(first + 1, bisect_right(through, begun + length))
        return order, firsts


class Labels(NamedTuple):
    """By what questions are scored, int64: the story's label, and words of it so far."""

    label_BT: Tensor
    position_BT: Tensor


def split_words(text: str, marks: str) -> list[str]:
    """Return the words of a text in lower case, each of the `marks` a word of its own."""
    return text.lower().translate({ord(mark): f" {mark} " for mark in marks}).split()


def _laid_out(flat_N: Tensor, rows: Iterable[_Row], length: int) -> Tensor:
    return torch.stack(
        [torch.cat([flat_N[piece] for piece in row.pieces])[:length] for row in rows]
    )
