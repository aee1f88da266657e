"""Every mixer on the tasks that made them known, explicit and implicit: runs of one table.

A row a mixer of MIXERS, and some more settings of them; a column a task. Quick ones are tiny and
short, and tell what a mixer learns in some hundred steps, not what it can. Read
`equilm/report/mixer_table.py` next, which draws the table.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from equilm.config import ConfigError, nearest
from equilm.measure.at_lengths import AtLengths
from equilm.measure.throughput import Throughput
from equilm.nn.equilibrium import EquilibriumConfig
from equilm.nn.hybrid import HybridConfig
from equilm.nn.model import ModelConfig
from equilm.report.mixer_table import GROUP, IMPLICIT, mixers_table
from equilm.reproduce import trackers
from equilm.reproduce.figures import Part, Settings
from equilm.reproduce.plan import Figure, Measurement, Run
from equilm.reproduce.rows import Row, needs_all, table_rows, width
from equilm.solve import Picard, Solve
from equilm.tasks import (
    AssociativeRecallConfig,
    CopyingConfig,
    InductionConfig,
    ListOpsConfig,
    RegularConfig,
    TaskConfig,
    WordProblemConfig,
)
from equilm.train.optim import OptimConfig
from equilm.train.recipe import Recipe
from equilm.train.schedule import AdaptiveLengths, Curriculum, FixedLengths, Phase, RateSchedule

# A run may be impossible for a mixer, and the others go on.
TOLERATED = (RuntimeError, ValueError, TypeError, AssertionError)
SEEDS = (0, 1, 2)
MOST_SEEN = 2**14  # tokens in the test of a mixer whose every token sees all before it
SOLVED = EquilibriumConfig(solve=Solve(tolerance=0.01, solver=Picard(damping=0.8)))


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
    layers: int = 2
    phases: tuple[Phase, ...] = trackers.PHASES
    window: int | None = None


def mixers(settings: Settings) -> Figure:
    """The table of all mixers.

    Raises:
        ConfigError: If it is to have a row of which there is none.
    """
    quick = settings.quick
    rows = table_rows(quick=quick)
    for name in settings.only:
        if name not in rows:
            raise ConfigError(
                f"only: expected some of {', '.join(rows)}; got {name!r}, "
                f"nearest is {nearest(name, rows)!r}"
            )
    runs = [
        _run(name, mixer, column, quick=quick, implicit=implicit)
        for name, mixer in rows.items()
        if not settings.only or name in settings.only
        for column in columns(quick=quick)
        for implicit in (False, True)
    ]
    return Figure(
        name="mixers",
        runs=tuple(runs),
        seeds=SEEDS[:1] if quick else SEEDS,
        draw=(),
        tables=(mixers_table,),
        tolerates=TOLERATED,
    )


def columns(*, quick: bool) -> tuple[Column, ...]:
    """Return the columns in the order of the table."""
    return tuple(_quick_columns() if quick else _full_columns())


def recipe(mixer: Row, column: Column, *, quick: bool, implicit: bool) -> Recipe:
    """Return the training run of a mixer on a column: the stack alone, or iterated."""
    layers = column.layers
    mlp_hidden: int | None = 2 * width(quick=quick)
    if isinstance(mixer, HybridConfig):
        layers, mlp_hidden = len(mixer.layers), None
    return Recipe(
        model=ModelConfig(
            width=width(quick=quick),
            num_layers=layers,
            mixer=mixer,
            mlp_hidden=mlp_hidden,
            weight_norm=implicit,
            equilibrium=SOLVED if implicit else None,
        ),
        task=column.task,
        steps=column.steps,
        batch_size=column.batch_size,
        max_tokens=column.max_tokens,
        curriculum=column.curriculum,
        phases=column.phases,
        optim=OptimConfig(
            rate=5e-3 if quick else 1e-3,
            clip=1.0,
            weight_decay=0.0,
            schedule=RateSchedule(shape="linear", warmup=0.05),
        ),
        precision="float32",
        threads=1 if quick else None,
        log_every=20,
        checkpoint_every=column.steps if quick else 1000,
    )


def _run(name: str, mixer: Row, column: Column, *, quick: bool, implicit: bool) -> Run:
    tests = column.tests
    if needs_all(mixer):
        tests = tuple(length for length in tests if length <= MOST_SEEN)
    tested = AtLengths(lengths=tests, batch_size=64, window=column.window)
    measures: list[Measurement] = [Part(part=column.part, measure=tested)]
    if column.part == "recall":
        speed = Throughput(batch_size=4, length=64, slots=4) if quick else Throughput()
        measures.append(Part(part="pace", measure=speed))
    return Run(
        name=f"{name}{IMPLICIT}" if implicit else name,
        group=f"{GROUP}{column.part}",
        recipe=recipe(mixer, column, quick=quick, implicit=implicit),
        measures=tuple(measures),
    )


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
    solved = (Phase(max_steps=0, phantom_steps=4), Phase(share=0.6, max_steps=16, phantom_steps=4))
    small = Column(
        part="parity",
        task=RegularConfig(language="parity"),
        curriculum=AdaptiveLengths(lengths=trackers.LENGTHS_FULL, accuracy=0.98, min_steps=20),
        tests=(64, 256),
        steps=2000,
        batch_size=512,
        layers=1,
        window=8,
    )
    yield small
    yield replace(small, part="tracking", task=WordProblemConfig(group="A5"), steps=4000)
    yield from _full_asking(replace(small, layers=2, phases=solved, window=None, steps=8000))


def _full_asking(asks: Column) -> Iterator[Column]:
    yield replace(
        asks,
        part="copying",
        task=CopyingConfig(),
        curriculum=FixedLengths(lengths=(256, 1024, 4096), shares=(0.0, 0.3, 0.6)),
        tests=(4096,),
        max_tokens=2**16,
    )
    yield replace(
        asks,
        part="induction",
        task=InductionConfig(),
        curriculum=FixedLengths(lengths=(256,)),
        tests=tuple(2**power for power in range(6, 21, 2)),
    )
    yield replace(
        asks,
        part="recall",
        task=AssociativeRecallConfig(pairs=16),
        curriculum=FixedLengths(lengths=(256,)),
        tests=(256,),
        max_tokens=2**15,
    )
    yield replace(
        asks,
        part="list_ops",
        task=ListOpsConfig(),
        curriculum=FixedLengths(lengths=(2000,)),
        tests=(2000,),
        batch_size=32,
    )
