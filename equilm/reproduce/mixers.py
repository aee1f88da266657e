"""Every mixer on the tasks that made them known, explicit and implicit: runs of one table.

A row a mixer of MIXERS, and some more settings of them; a column a task. Quick ones are tiny and
short, and tell what a mixer learns in some hundred steps, not what it can. Read `columns.py` and
`equilm/report/mixer_table.py` next, which draws the table.
"""

from dataclasses import replace

from equilm.config import ConfigError, nearest
from equilm.measure.at_lengths import AtLengths
from equilm.measure.throughput import Throughput
from equilm.nn.equilibrium import EquilibriumConfig
from equilm.nn.hybrid import HybridConfig
from equilm.nn.model import ModelConfig
from equilm.report.mixer_table import GROUP, IMPLICIT, mixers_table
from equilm.reproduce.columns import Column, columns
from equilm.reproduce.figures import Part, Settings
from equilm.reproduce.plan import Figure, Measurement, Run
from equilm.reproduce.rows import Row, table_rows, width
from equilm.solve import Picard, Solve
from equilm.train.optim import OptimConfig
from equilm.train.recipe import Recipe
from equilm.train.schedule import RateSchedule

# A run may be impossible for a mixer, and the others go on.
TOLERATED = (RuntimeError, ValueError, TypeError, AssertionError)
SEEDS = (0, 1, 2)
SOLVED = EquilibriumConfig(solve=Solve(tolerance=0.01, solver=Picard(damping=0.8)))
# Above every depth in training, so that a solve is one CUDA graph.
AT_ONCE = replace(SOLVED, solve=replace(SOLVED.solve, check_every=16))


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


def recipe(mixer: Row, column: Column, *, quick: bool, implicit: bool) -> Recipe:
    """Return the training run of a mixer on a column: the stack alone, or iterated."""
    layers, solved = column.layers, SOLVED if quick else AT_ONCE
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
            equilibrium=solved if implicit else None,
        ),
        task=column.task,
        steps=column.steps,
        batch_size=column.batch_size,
        max_tokens=column.max_tokens,
        curriculum=column.curriculum,
        phases=column.phases,
        optim=OptimConfig(
            rate=column.rate,
            clip=1.0,
            weight_decay=0.0,
            schedule=RateSchedule(shape="linear" if quick else "stable", warmup=0.05),
        ),
        precision="float32",
        threads=1,
        log_every=20,
        checkpoint_every=column.steps,
    )


def _run(name: str, mixer: Row, column: Column, *, quick: bool, implicit: bool) -> Run:
    rows = 64 if quick else 256
    tested = AtLengths(lengths=column.tests, batch_size=rows, window=column.window)
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
