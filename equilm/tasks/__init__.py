"""The table of tasks: a new task is one file and one row here. Read `task.py` first."""

from __future__ import annotations

from typing import Any, TypeAlias

from equilm.config import nearest
from equilm.tasks.associative_recall import AssociativeRecall, AssociativeRecallConfig
from equilm.tasks.catbabi import CatbAbI, CatbAbIConfig
from equilm.tasks.copying import Copying, CopyingConfig
from equilm.tasks.dna import DNA, DNAConfig
from equilm.tasks.entities import Entities, EntitiesConfig
from equilm.tasks.induction import Induction, InductionConfig
from equilm.tasks.list_ops import ListOps, ListOpsConfig
from equilm.tasks.pixels import Pixels, PixelsConfig
from equilm.tasks.regular import Regular, RegularConfig
from equilm.tasks.shuffled_objects import ShuffledObjects, ShuffledObjectsConfig
from equilm.tasks.speech import Speech, SpeechConfig
from equilm.tasks.stories import Labels, StoryTask
from equilm.tasks.task import (
    IGNORE,
    SPLITS,
    Batch,
    Scores,
    Task,
    cross_entropy_sum,
    scores,
)
from equilm.tasks.text import Text, TextConfig
from equilm.tasks.word_problem import WordProblem, WordProblemConfig

__all__ = [
    "DNA",
    "IGNORE",
    "SPLITS",
    "TASKS",
    "AssociativeRecall",
    "AssociativeRecallConfig",
    "Batch",
    "CatbAbI",
    "CatbAbIConfig",
    "Copying",
    "CopyingConfig",
    "DNAConfig",
    "Entities",
    "EntitiesConfig",
    "Induction",
    "InductionConfig",
    "Labels",
    "ListOps",
    "ListOpsConfig",
    "Pixels",
    "PixelsConfig",
    "Regular",
    "RegularConfig",
    "Scores",
    "ShuffledObjects",
    "ShuffledObjectsConfig",
    "Speech",
    "SpeechConfig",
    "StoryTask",
    "Task",
    "TaskConfig",
    "Text",
    "TextConfig",
    "WordProblem",
    "WordProblemConfig",
    "build_task",
    "cross_entropy_sum",
    "scores",
]

TaskConfig: TypeAlias = (
    WordProblemConfig
    | RegularConfig
    | CatbAbIConfig
    | EntitiesConfig
    | ShuffledObjectsConfig
    | TextConfig
    | CopyingConfig
    | InductionConfig
    | AssociativeRecallConfig
    | ListOpsConfig
    | PixelsConfig
    | DNAConfig
    | SpeechConfig
)

# Every task by its `kind`: its configuration and its class.
TASKS: dict[str, tuple[type, type[Any]]] = {
    "word_problem": (WordProblemConfig, WordProblem),
    "regular": (RegularConfig, Regular),
    "catbabi": (CatbAbIConfig, CatbAbI),
    "entities": (EntitiesConfig, Entities),
    "shuffled_objects": (ShuffledObjectsConfig, ShuffledObjects),
    "associative_recall": (AssociativeRecallConfig, AssociativeRecall),
    "copying": (CopyingConfig, Copying),
    "dna": (DNAConfig, DNA),
    "induction": (InductionConfig, Induction),
    "list_ops": (ListOpsConfig, ListOps),
    "pixels": (PixelsConfig, Pixels),
    "speech": (SpeechConfig, Speech),
    "text": (TextConfig, Text),
}


def build_task(config: TaskConfig) -> Task:
    """Build the task that a config describes.

    Args:
        config: one of the configs in TASKS.

    Returns:
        The task, ready to give batches.

    Raises:
        ValueError: its kind is in no row.
    """
    if config.kind not in TASKS:
        raise ValueError(
            f"kind: expected one of {', '.join(TASKS)}; got {config.kind!r}, "
            f"nearest is {nearest(config.kind, tuple(TASKS))!r}"
        )
    _, task_class = TASKS[config.kind]
    task: Task = task_class(config)
    return task
