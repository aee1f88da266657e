"""Tracking shuffled objects: who has what after some swaps, told in words.

The test split is that of BIG-Bench Hard, read from a folder with
`tracking_shuffled_objects_three_objects.json` and its like. It has no other splits: training and
validation are its problems with objects, swaps and question drawn anew. Not here: how rows are made
of stories (`stories.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple, final

from equilm.tasks.stories import Mode, Story, StoryTask, split_words

FILE = "tracking_shuffled_objects_{}_objects.json"
NUMBERS = {3: "three", 5: "five", 7: "seven"}
MARKS = ".,:'"

_SWAP = re.compile(r"(First|Then|Finally), (\w+) and (\w+)")
_ASKED = re.compile(r"(?<=, )\w+(?= [^.,]*\nOptions:)")
_OPTION = re.compile(r"\(([A-Z])\) (.+)")


@dataclass(frozen=True, kw_only=True)
class ShuffledObjectsConfig:
    """Where the problems lie and what is asked of them.

    Args:
        folder: with a file of BIG-Bench Hard for each number of objects.
        mode: `question` asks for the letter of the answer alone, `language` for every word.
        objects: 3, 5 and 7, or some of them.
        copies: problems drawn from each one of the test split, for training and again for
            validation, ≥ 1.

    Raises:
        ValueError: another number of objects, or no copies.

    Source: Suzgun et al. 2022, arXiv 2210.09261.
    """

    kind: Literal["shuffled_objects"] = "shuffled_objects"
    folder: Path
    mode: Mode = "question"
    objects: tuple[int, ...] = (3, 5, 7)
    copies: int = 20

    def __post_init__(self) -> None:
        if not self.objects or not set(self.objects) <= set(NUMBERS):
            raise ValueError(f"objects: expected numbers among 3, 5, 7; got {self.objects}")
        if self.copies < 1:
            raise ValueError(f"copies: expected an integer >= 1, got {self.copies}")


class Problem(NamedTuple):
    """A problem in words, and the letter of its answer."""

    text: str
    answer: str


@final
class ShuffledObjects(StoryTask):
    """A story a problem, answered by the letter of an option; labels count the objects.

    Args:
        config: folder, mode and numbers of objects.

    Raises:
        ValueError: a file is missing.
    """

    def __init__(self, config: ShuffledObjectsConfig) -> None:
        self.config = config
        stories: dict[str, list[Story]] = {"train": [], "valid": [], "test": []}
        for number in config.objects:
            official = list(read_problems(config.folder / FILE.format(NUMBERS[number])))
            stories["test"] += [_story(problem, number) for problem in official]
            known = {problem.text for problem in official}
            for split in ("train", "valid"):
                drawn = _drawn_anew(official, config.copies, known, Random(f"{split} {number}"))
                stories[split] += [_story(problem, number) for problem in drawn]
        super().__init__("shuffled_objects", stories, mode=config.mode, label="objects")

    def describe(self, label: int) -> str:
        """Return "3 objects" for 3."""
        return f"{label} objects"


def read_problems(path: Path) -> Iterator[Problem]:
    """Yield the problems of a file of BIG-Bench Hard.

    Raises:
        ValueError: no such file.
    """
    if not path.exists():
        raise ValueError(f"folder: expected {path.name} in {path.parent}, got none")
    for example in json.loads(path.read_text(encoding="utf-8"))["examples"]:
        yield Problem(example["input"], example["target"])


def solved(text: str) -> str:
    """Return the letter of the answer to a problem, such as "(B)", by doing what it says.

    Options stand in the order in which the people are named, each with the object they begin with.
    """
    options = [name for _, name in _OPTION.findall(text)]
    letters = [f"({letter})" for letter, _ in _OPTION.findall(text)]
    people = _people(text, options)
    has = dict(zip(people, letters, strict=True))
    for _, one, other in _SWAP.findall(text):
        has[one], has[other] = has[other], has[one]
    asked = _ASKED.search(text)
    assert asked is not None, text
    return has[asked[0]]


def redrawn(text: str, random: Random) -> Problem:
    """Return a problem in the same words with objects, swaps and question drawn anew."""
    options = [name for _, name in _OPTION.findall(text)]
    people = _people(text, options)
    renamed = dict(zip(options, random.sample(options, len(options)), strict=True))
    longest_first = sorted(options, key=len, reverse=True)
    text = re.sub("|".join(map(re.escape, longest_first)), lambda m: renamed[m[0]], text)
    text = _SWAP.sub(lambda m: "{}, {} and {}".format(m[1], *random.sample(people, 2)), text)
    text = _ASKED.sub(random.choice(people), text)
    return Problem(text, solved(text))


def _drawn_anew(
    official: Sequence[Problem], copies: int, known: set[str], random: Random
) -> Iterator[Problem]:
    for problem in official:
        for _ in range(copies):
            drawn = redrawn(problem.text, random)
            while drawn.text in known:
                drawn = redrawn(problem.text, random)
            yield drawn


def _people(text: str, options: Sequence[str]) -> list[str]:
    """The people, in the order in which they are said to have an object."""
    start = text.index(": ")
    told = text[start : text.index(".\n", start)]
    clauses = re.split(r", and |, |: ", told)[1:]
    assert len(clauses) == len(options), told
    return [clause.split()[0] for clause in clauses]


def _story(problem: Problem, number: int) -> Story:
    words = split_words(problem.text, MARKS)
    return Story([*words, problem.answer.lower()], [len(words)], number)
