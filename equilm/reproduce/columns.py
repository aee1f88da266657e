"""The columns of the table of mixers: tasks, and how long one is learnt.

A run ends once its task is learnt, so that most steps go to those that learn slowly. Lengths in
training grow with what is learnt. Read `mixers.py` next.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from equilm.tasks import (
    AssociativeRecallConfig,
    CopyingConfig,
    InductionConfig,
    ListOpsConfig,
    RegularConfig,
    TaskConfig,
    WordProblemConfig,
)
from equilm.train.schedule import AdaptiveLengths, Curriculum, FixedLengths, Phase


@dataclass(frozen=True, kw_only=True)
class Column:
    """A task as the table asks it.

    Args:
        part: Of the Records.
        task: Of training and test.
        curriculum: Lengths in training.
        tests: Lengths in the test; the table shows the longest.
        steps: Of the optimizer.
        batch_size: Sequences a step.
        max_tokens: Tokens a step at most.
        rate: The highest, of the optimizer.
        layers: Of the stack.
        phases: Depth of an implicit model's solve.
        window: Tokens that an implicit model solves at once in the test; `None` for all.
    """

    part: str
    task: TaskConfig
    curriculum: Curriculum
    tests: tuple[int, ...]
    steps: int
    batch_size: int
    max_tokens: int | None = None
    rate: float
    layers: int = 2
    phases: tuple[Phase, ...]
    window: int | None = None


def columns(*, quick: bool) -> tuple[Column, ...]:
    """Return the columns in the order of the table."""
    return tuple(_quick_columns() if quick else _full_columns())


def _quick_columns() -> Iterator[Column]:
    grows = (Phase(max_steps=0, phantom_steps=6), Phase(length=6, max_steps=16, phantom_steps=4))
    solved = (Phase(max_steps=0, phantom_steps=2), Phase(share=0.7, max_steps=6, phantom_steps=2))
    small = Column(
        part="parity",
        task=RegularConfig(language="parity"),
        curriculum=AdaptiveLengths(lengths=(2, 3, 4, 6, 8, 12), accuracy=0.97, min_steps=10),
        tests=(12, 48),
        steps=150,
        batch_size=32,
        rate=5e-3,
        layers=1,
        phases=grows,
        window=8,
    )
    yield small
    yield replace(small, part="tracking", task=WordProblemConfig(group="S3"), steps=250)
    yield from _quick_asking(replace(small, layers=2, phases=solved, window=None, steps=300))


def _quick_asking(asks: Column) -> Iterator[Column]:
    """Tasks that ask for what was told before."""
    yield replace(
        asks,
        part="copying",
        task=CopyingConfig(items=3, vocabulary=6),
        curriculum=FixedLengths(lengths=(24,)),
        tests=(24,),
    )
    yield replace(
        asks,
        part="induction",
        task=InductionConfig(vocabulary=6),
        curriculum=FixedLengths(lengths=(12,)),
        tests=(12, 48),
        steps=120,
    )
    yield replace(
        asks,
        part="recall",
        task=AssociativeRecallConfig(pairs=2, vocabulary=8),
        curriculum=FixedLengths(lengths=(8,)),
        tests=(8,),
        batch_size=64,
    )
    yield replace(
        asks,
        part="list_ops",
        task=ListOpsConfig(asked="each", max_depth=4, max_arguments=4),
        curriculum=FixedLengths(lengths=(24,)),
        tests=(24,),
        steps=200,
    )


def _full_columns() -> Iterator[Column]:
    grows = (
        Phase(max_steps=0, phantom_steps=6),
        Phase(length=6, window=8, max_steps=14, steps_per_token=1.5, phantom_steps=4),
    )
    parity = Column(
        part="parity",
        task=RegularConfig(language="parity"),
        curriculum=_until_learnt(2, 3, 4, 6, 8, 12, 16, 24, 32, mark=0.98),
        tests=(32, 128),
        steps=600,
        batch_size=256,
        rate=2e-3,
        layers=1,
        phases=grows,
        window=8,
    )
    yield parity
    yield replace(
        parity,
        part="tracking",
        task=WordProblemConfig(group="A5"),
        curriculum=_until_learnt(2, 3, 4, 6, 8, 12, 16, mark=0.95),
        tests=(16, 64),
        steps=2000,
        batch_size=512,
    )
    # Unrolled while sequences are short.
    solved = (Phase(max_steps=0, phantom_steps=4), Phase(length=64, max_steps=8, phantom_steps=4))
    yield from _full_asking(
        replace(parity, layers=2, phases=solved, window=None, max_tokens=2**13, steps=1500)
    )


def _full_asking(asks: Column) -> Iterator[Column]:
    """Tasks that ask for what was told before."""
    yield replace(
        asks,
        part="copying",
        task=CopyingConfig(items=8),
        curriculum=_until_learnt(18, 24, 32, 64, 128, 256),
        tests=(256,),
    )
    yield replace(
        asks,
        part="induction",
        task=InductionConfig(),
        # To go on beyond what is learnt is what lets it last for longer sequences.
        curriculum=replace(_until_learnt(16, 32, 64, 128, 256), until=None),
        tests=(256, 4096),
        steps=600,
        rate=5e-3,
    )
    yield replace(
        asks,
        part="recall",
        task=AssociativeRecallConfig(pairs=8, vocabulary=256),
        curriculum=_until_learnt(32, 64, 128),
        tests=(128,),
    )
    yield replace(
        asks,
        part="list_ops",
        task=ListOpsConfig(asked="each", max_depth=6, max_arguments=5),
        curriculum=_until_learnt(16, 32, 64, 128, mark=0.6),
        tests=(128,),
        steps=1000,
    )


def _until_learnt(*lengths: int, mark: float = 0.9) -> AdaptiveLengths:
    return AdaptiveLengths(lengths=lengths, accuracy=mark, min_steps=10, until=0.995)
