"""The table of figures: a new one is a function here, or in `stories.py`, and a row of FIGURES.

`quick` variants take minutes on two CPU cores: S3 for S5, fewer and smaller models, one seed. They
show that the way from recipe to plot works, and what to expect of it; they are not the figures.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from equilm.measure.effort import HardShares, Tolerances
from equilm.measure.evaluate import EvaluationConfig, evaluate
from equilm.measure.jacobian import jacobian_records
from equilm.measure.trajectories import Trajectories
from equilm.nn.model import LanguageModel
from equilm.record import Record
from equilm.report import curves, maps, tracking
from equilm.report.plot import Plot
from equilm.report.tables import Table, accuracy_table, effort_table
from equilm.reproduce import trackers
from equilm.reproduce.plan import Figure, Measurement, Run
from equilm.tasks import Task, WordProblemConfig, build_task
from equilm.train.recipe import Recipe

SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a person chooses.

    Args:
        quick: Minutes on two CPU cores instead of the figure itself.
        data: A folder of bAbI v1.2, or of prepared text, for the figures that need it.
        only: Rows of the table of mixers; none stands for all. Read by `mixers` alone.
    """

    quick: bool = False
    data: Path | None = None
    only: tuple[str, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """Five, or one if quick."""
        return SEEDS[:1] if self.quick else SEEDS


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Accuracy by length, as `equilm evaluate` measures it."""

    settings: EvaluationConfig

    def records(self, model: LanguageModel, task: Task) -> Iterator[Record]:
        """Yield what `evaluate` does."""
        return evaluate(model, task, self.settings)


@dataclass(frozen=True, kw_only=True)
class Jacobians:
    """The three Jacobians of the state at the last of some tokens."""

    length: int = 24

    def records(self, model: LanguageModel, task: Task) -> Iterator[Record]:
        """Yield a Record a matrix row."""
        batch = task.batch(split="test", length=self.length, batch_size=1, seed=0, index=0)
        for one in jacobian_records(model, batch.tokens_BT):
            yield replace(one, length=self.length, task=task.name, split="test")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A measurement whose Records carry a `part`, so that a drawing finds its own."""

    part: str
    measure: Measurement

    def records(self, model: LanguageModel, task: Task) -> Iterator[Record]:
        """Yield the Records of the measurement."""
        for one in self.measure.records(model, task):
            yield replace(one, part=self.part)


def only(
    part: str, draw: Callable[[list[Record]], Plot | None]
) -> Callable[[list[Record]], Plot | None]:
    """Return a drawing of one part's Records alone."""
    return lambda records: draw([record for record in records if record.part == part])


def of_task(
    task: str, draw: Callable[[list[Record]], Plot | None]
) -> Callable[[list[Record]], Plot | None]:
    """Return a drawing of one task's Records alone, named after it."""

    def drawn(records: list[Record]) -> Plot | None:
        plot = draw([record for record in records if record.task == task])
        return plot and replace(plot, name=f"{plot.name}-{task.split()[-1]}")

    return drawn


def fig1(settings: Settings) -> Figure:
    """Layers needed against length, and one implicit layer on four times its length."""
    quick = settings.quick
    lengths = (4, 8, 16) if quick else (4, 8, 16, 32)
    layers = (1, 2, 4) if quick else (1, 2, 4, 8, 16)
    task = trackers.group(quick=quick)
    runs = []
    for length in lengths:
        measures = [Part(part="depth", measure=_lengths((length,), window=1))]
        if length == max(lengths):
            beyond = (length // 2, length, 2 * length, 4 * length)
            measures.append(Part(part="beyond", measure=_lengths(beyond, window=1)))
        for depth, implicit in ((1, True), *((depth, False) for depth in layers)):
            made = trackers.of_depth(task, length, quick=quick, layers=depth, implicit=implicit)
            name = "implicit-1" if implicit else f"explicit-{depth}"
            run = Run(name=name, group=f"length-{length}", recipe=made, measures=tuple(measures))
            runs.append(replace(run, about={"row": depth}))
    return Figure(
        name="fig1",
        runs=tuple(runs),
        seeds=settings.seeds,
        draw=(tracking.layers_needed, only("beyond", curves.accuracy_by_length)),
        tables=(_beyond_table,),
    )


def fig2(settings: Settings) -> Figure:
    """The duality: trajectories in both modes, and both perplexities."""
    made = _of_tracker("fig2", settings, (Trajectories(),), (tracking.trajectories,))
    return replace(made, tables=(tracking.duality_table,))


def fig3(settings: Settings) -> Figure:
    """Hard tokens in training and test; sweeps in training, implicit against unrolled."""
    quick = settings.quick
    length, steps = (12, 200) if quick else (32, None)
    grows = trackers.up_to(length, quick=quick)
    shares = (10, 30, 50, 90) if quick else (10, 20, 30, 40, 50, 70, 90)
    tested = HardShares(length=64 if quick else 256, window=1)
    runs = []
    for percent in shares:
        task = replace(trackers.group(quick=quick), identity_probability=1 - percent / 100)
        made = trackers.recipe(task, quick=quick, implicit=True, curriculum=grows, steps=steps)
        run = Run(
            name=f"hard-{percent}",
            group="hard",
            recipe=made,
            measures=(Part(part="hard", measure=tested),),
            about={"row": percent},
        )
        runs.append(run)
    task = trackers.group(quick=quick)
    base = trackers.recipe(task, quick=quick, implicit=True, curriculum=grows, steps=steps)
    for sweeps in (1, 2, 4, 8, 16) if quick else (1, 2, 4, 8, 16, 32):
        runs += _of_sweeps(base, sweeps, length)
    return Figure(
        name="fig3",
        runs=tuple(runs),
        seeds=settings.seeds,
        draw=(tracking.hard_share_map, tracking.training_sweeps),
    )


def fig7(settings: Settings) -> Figure:
    """The Jacobian of the state map: autograd, Theorem 1, explicit."""
    return _of_tracker("fig7", settings, (Jacobians(),), (maps.jacobian_maps,))


def adaptive(settings: Settings) -> Figure:
    """Evaluations a token against hardness; tolerance against accuracy."""
    length = 256 if settings.quick else 1024
    measures = (HardShares(length=length), Tolerances(length=length))
    draw = (tracking.effort_by_hardness, tracking.tolerance_curves)
    return _of_tracker("adaptive", settings, measures, draw)


def length(settings: Settings) -> Figure:
    """How far each model tracks the state that was trained on few tokens."""
    quick = settings.quick
    runs = []
    for name in ("S3",) if quick else ("S5", "A5"):
        task = WordProblemConfig(group=name)
        made = trackers.tracker(task, quick=quick)
        measures = (_far(name, "implicit-1"),)
        runs.append(Run(name="implicit-1", group=name, recipe=made, measures=measures))
        for rival in trackers.rivals(quick=quick):
            made = trackers.rival(task, rival, quick=quick)
            measures = (_far(name, rival),)
            runs.append(Run(name=rival, group=name, recipe=made, measures=measures))
    groups = dict.fromkeys(run.recipe.task for run in runs)
    by_length = curves.accuracy_by_length if quick else curves.every_seed_by_length
    return Figure(
        name="length",
        runs=tuple(runs),
        seeds=settings.seeds,
        draw=tuple(
            of_task(build_task(task).name, draw)
            for task in groups
            for draw in (by_length, curves.accuracy_by_position, maps.effort_map)
        ),
        tables=(accuracy_table, _last_table, effort_table),
    )


def _of_tracker(
    name: str,
    settings: Settings,
    measures: tuple[Measurement, ...],
    draw: tuple[Callable[[list[Record]], Plot | None], ...],
) -> Figure:
    """A figure of the one implicit tracker, which `length` trains too."""
    task = trackers.group(quick=settings.quick)
    made = trackers.tracker(task, quick=settings.quick)
    run = Run(name="implicit-1", group=task.group, recipe=made, measures=measures)
    return Figure(name=name, runs=(run,), seeds=settings.seeds, draw=draw)


def _of_sweeps(base: Recipe, sweeps: int, length: int) -> Iterator[Run]:
    """A run with phantom gradient and one unrolled, both of so many evaluations."""
    converged = EvaluationConfig(lengths=(length,), windows=(0,), max_steps=1000)
    as_many = EvaluationConfig(lengths=(length,), windows=(0,), tolerance=0.0, max_steps=sweeps)
    kinds = {
        # The phantom steps are four at most, and count.
        "implicit": (max(0, sweeps - 4), min(4, sweeps), converged),
        "unrolled": (0, sweeps, as_many),
    }
    for name, (free, phantom, settings) in kinds.items():
        yield Run(
            name=name,
            group=f"sweeps-{sweeps}",
            recipe=trackers.in_bounds(base, sweeps=free, phantom=phantom),
            measures=(Part(part="sweeps", measure=Lengths(settings=settings)),),
            about={"sweeps": sweeps},
        )


def _lengths(lengths: tuple[int, ...], *, window: int) -> Lengths:
    return Lengths(settings=EvaluationConfig(lengths=lengths, windows=(window,)))


def _far(group: str, model: str) -> Lengths:
    """How far a group's state is tracked: on S5 further by what may still know it there."""
    if group == "S3":
        return _lengths((16, 64, 256, 1000, 2000), window=1)
    lengths: tuple[int, ...] = (64, 256, 1024, 4096)
    if group == "S5" and model in ("implicit-1", "lstm"):
        lengths = (*lengths, 16_384, 65_536)
    # As `equilm evaluate` measures it in docs/state-tracking.md.
    return Lengths(settings=EvaluationConfig(lengths=lengths, batch_size=64, max_steps=12))


def _beyond_table(records: list[Record]) -> Table | None:
    return accuracy_table([r for r in records if r.part == "beyond"], name="accuracy_last10")


def _last_table(records: list[Record]) -> Table | None:
    return accuracy_table(records, name="accuracy_last10")
