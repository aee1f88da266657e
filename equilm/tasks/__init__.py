"""The table of tasks: a new task is one file and one row here. Read `task.py` first."""

from __future__ import annotations

from typing import TypeAlias

from equilm.config import nearest
from equilm.tasks.task import (
    IGNORE,
    SPLITS,
    Batch,
    Scores,
    Task,
    cross_entropy_sum,
    scores,
)
from equilm.tasks.word_problem import WordProblem, WordProblemConfig

__all__ = [
    "IGNORE",
    "SPLITS",
    "TASKS",
    "Batch",
    "Scores",
    "Task",
    "TaskConfig",
    "WordProblem",
    "WordProblemConfig",
    "build_task",
    "cross_entropy_sum",
    "scores",
]

# Grows into a union, tagged by `kind`, with the second row.
TaskConfig: TypeAlias = WordProblemConfig

TASKS: dict[str, tuple[type[WordProblemConfig], type[WordProblem]]] = {
    "word_problem": (WordProblemConfig, WordProblem),
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
    return task_class(config)
