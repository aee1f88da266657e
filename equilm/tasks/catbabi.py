"""CatbAbI: the stories of all bAbI tasks as one stream of words, answers after the question mark.

Read from a folder with `qa1_train.txt` … `qa20_test.txt` of bAbI v1.2. Not here: how rows are made
of stories (`stories.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from equilm.tasks.stories import Mode, Story, StoryTask, split_words
from equilm.tasks.task import SPLITS

NUM_TASKS = 20


@dataclass(frozen=True, kw_only=True)
class CatbAbIConfig:
    """Where the stories lie and what is asked of them.

    Args:
        folder: with `qaN_train.txt`, `qaN_valid.txt`, `qaN_test.txt` for each N.
        mode: `question` asks for answers alone, `language` for every word.
        tasks: numbers N of the bAbI tasks, in 1..20.

    Raises:
        ValueError: a task that is none.

    Source: Schlag et al. 2021, arXiv 2011.07831: words split at blanks, `.` and `?` words of their
    own, an answer of several parts ("n,w") one word; Weston et al. 2015, arXiv 1502.05698.
    """

    kind: Literal["catbabi"] = "catbabi"
    folder: Path
    mode: Mode = "question"
    tasks: tuple[int, ...] = tuple(range(1, NUM_TASKS + 1))

    def __post_init__(self) -> None:
        if not self.tasks or not set(self.tasks) <= set(range(1, NUM_TASKS + 1)):
            raise ValueError(f"tasks: expected numbers in 1..{NUM_TASKS}, got {self.tasks}")


@final
class CatbAbI(StoryTask):
    """The stories of bAbI, shuffled; labels are the numbers of their tasks.

    Args:
        config: folder, mode and tasks.

    Raises:
        ValueError: a file is missing.
    """

    def __init__(self, config: CatbAbIConfig) -> None:
        self.config = config
        stories = {
            split: [
                story
                for number in config.tasks
                for story in read_stories(config.folder / f"qa{number}_{split}.txt", number)
            ]
            for split in SPLITS
        }
        super().__init__("catbabi", stories, mode=config.mode, label="task")

    def describe(self, label: int) -> str:
        """Return "qa3" for 3."""
        return f"qa{label}"


def read_stories(path: Path, label: int) -> Iterator[Story]:
    """Yield the stories of a bAbI file, each answer a word behind its question mark.

    Args:
        path: lines "ID text" or "ID question TAB answer TAB supporting IDs"; ID 1 begins a story.
        label: of all of them.

    Raises:
        ValueError: no such file.
    """
    if not path.exists():
        raise ValueError(f"folder: expected {path.name} of bAbI v1.2 in {path.parent}, got none")
    words: list[str] = []
    answers: list[int] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        number, _, told = line.partition(" ")
        if number == "1" and words:
            yield Story(words, answers, label)
            words, answers = [], []
        text, *answer = told.split("\t")
        words += split_words(text, ".?")
        if answer:
            answers.append(len(words))
            words.append(answer[0].lower())
    if words:
        yield Story(words, answers, label)
