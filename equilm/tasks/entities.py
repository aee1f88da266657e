"""Boxes: what is in a box after things were put, moved and removed, told in words.

Read from a folder with `train.jsonl`, `dev.jsonl` and `test.jsonl`, each plain or `.xz`. Not here:
how rows are made of stories (`stories.py`).
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from equilm.tasks.stories import Mode, Story, StoryTask, split_words

FILES = {"train": "train", "valid": "dev"}


@dataclass(frozen=True, kw_only=True)
class EntitiesConfig:
    """Where the samples lie and what is asked of them.

    Args:
        folder: with JSON lines {"init", "ops", "state", "numops"}.
        mode: `question` asks for the content of the box alone, `language` for every word.
        test: the file of the test split, without `.jsonl`, such as one with more operations.

    Source: Kim and Schuster 2023, arXiv 2305.02363.
    """

    kind: Literal["entities"] = "entities"
    folder: Path
    mode: Mode = "question"
    test: str = "test"


@final
class Entities(StoryTask):
    """A story a query: beginning, k operations, "box b", its content; labels count operations.

    The content must be told in full and be closed by the end of the story to be right.

    Args:
        config: folder, mode and test file.

    Raises:
        ValueError: a file is missing.
    """

    def __init__(self, config: EntitiesConfig) -> None:
        self.config = config
        files = {**FILES, "test": config.test}
        stories = {split: list(_queries(config.folder, name)) for split, name in files.items()}
        super().__init__("entities", stories, mode=config.mode, label="operations")

    def describe(self, label: int) -> str:
        """Return "3 operations" for 3."""
        return f"{label} operations"


def _queries(folder: Path, name: str) -> Iterator[Story]:
    """A query for each number of operations and each box of each sample."""
    for sample in _samples(folder, name):
        words = split_words(sample["init"], ".,")
        for done, contents in enumerate(sample["state"]):
            if done:
                words = words + split_words(sample["ops"][done - 1], ".,")
            for box, content in enumerate(contents):
                question, answer = [*words, "box", str(box)], split_words(content, ".,")
                whole = question + answer
                # The end of the story closes the answer, hence one more.
                places = range(len(question), len(whole) + 1)
                yield Story(whole, places, sample["numops"][done][box])


def _samples(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    plain, packed = folder / f"{name}.jsonl", folder / f"{name}.jsonl.xz"
    if not plain.exists() and not packed.exists():
        raise ValueError(f"folder: expected {plain.name} or {packed.name} in {folder}, got neither")
    path = plain if plain.exists() else packed
    raw = path.read_bytes()
    text = (lzma.decompress(raw) if path is packed else raw).decode()
    yield from (json.loads(line) for line in text.splitlines() if line.strip())
