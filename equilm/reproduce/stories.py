"""Figures of questions about stories: CatbAbI, boxes, shuffled objects. Read `plan.py` first."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from equilm.config import ConfigError
from equilm.measure.stories import StoryScores
from equilm.nn.attention import AttentionConfig
from equilm.nn.mixers import MixerConfig
from equilm.nn.model import LanguageModel, ModelConfig
from equilm.record import Record
from equilm.report import questions
from equilm.report.plot import Plot
from equilm.reproduce import trackers
from equilm.reproduce.figures import Part, Settings
from equilm.reproduce.plan import Figure, Measurement, Run
from equilm.tasks import CatbAbIConfig, EntitiesConfig, ShuffledObjectsConfig, TaskConfig
from equilm.tasks.entities import Entities
from equilm.train.recipe import Recipe
from equilm.train.schedule import FixedLengths, Phase, RateSchedule

# Few words of a story change what is asked for, so that all can be solved at once.
PHASES_QUICK = (
    Phase(max_steps=0, phantom_steps=4),
    Phase(share=0.3, max_steps=16, phantom_steps=4),
)
PHASES_FULL = (
    Phase(max_steps=0, phantom_steps=4),
    Phase(share=0.4, max_steps=5, phantom_steps=4),
    Phase(share=0.7, max_steps=16, phantom_steps=4),
)
LLAMA = AttentionConfig(heads=6)


@dataclass(frozen=True, kw_only=True)
class OtherBoxes:
    """The same scores on another file of boxes, such as one with more operations.

    Args:
        part: That its Records are of.
        test: The file, without `.jsonl`.
        scores: What is measured.
    """

    part: str
    test: str
    scores: StoryScores

    def records(self, model: LanguageModel, task: Entities) -> Iterator[Record]:
        """Yield what the scores do.

        Raises:
            ValueError: If the file has other words than those learnt.
        """
        other = Entities(replace(task.config, test=self.test))
        if other.words != task.words:
            raise ValueError(f"test: expected the words of {task.config.test}, got others")
        yield from Part(part=self.part, measure=self.scores).records(model, other)


def fig13(settings: Settings) -> Figure:
    """CatbAbI: questions by task and by length of the story, and the sweeps they took.

    Raises:
        ConfigError: Without a folder of the data.
    """
    folder = _folder(settings, "fig13", "qa1_train.txt … of bAbI v1.2")
    quick = settings.quick
    tasks = (1, 6, 15) if quick else tuple(range(1, 21))
    task = CatbAbIConfig(folder=folder, tasks=tasks)
    scores = Part(part="questions", measure=_scores(2048, quick=quick))
    runs = []
    for layers in (1,) if quick else (1, 2, 4):
        for implicit in (True, False):
            name = f"{'implicit' if implicit else 'explicit'}-{layers}"
            length = 96 if quick else 512
            made = reader(task, quick=quick, layers=layers, implicit=implicit, length=length)
            runs.append(Run(name=name, group="catbabi", recipe=made, measures=(scores,)))
    return Figure(
        name="fig13",
        runs=tuple(runs),
        seeds=settings.seeds,
        draw=(questions.accuracy_by, questions.by_story_length),
        tables=(questions.questions_table,),
    )


def boxes(settings: Settings) -> Figure:
    """What is in a box, by the operations on it: as in training, and after up to 48 of them.

    Raises:
        ConfigError: Without a folder of the data.
    """
    folder = _folder(settings, "boxes", "train.jsonl, dev.jsonl, test.jsonl and test_48ops.jsonl")
    alike = _scores(1024, quick=settings.quick, max_batches=16)
    longer = _scores(2048, quick=settings.quick, max_batches=8)
    measures = (
        Part(part="questions", measure=alike),
        OtherBoxes(part="longer", test="test_48ops", scores=longer),
    )
    return Figure(
        name="boxes",
        runs=_readers(EntitiesConfig(folder=folder), measures, "boxes", quick=settings.quick),
        seeds=settings.seeds,
        draw=tuple(_of(part, "operations") for part in ("questions", "longer")),
        tables=tuple(
            partial(questions.questions_table, part=part) for part in ("questions", "longer")
        ),
    )


def shuffled(settings: Settings) -> Figure:
    """Who has what after some swaps: learnt from problems drawn anew, tested on the official ones.

    Raises:
        ConfigError: Without a folder of the data.
    """
    folder = _folder(settings, "shuffled", "tracking_shuffled_objects_three_objects.json …")
    task = ShuffledObjectsConfig(folder=folder, copies=2 if settings.quick else 40)
    measures = (Part(part="questions", measure=_scores(1024, quick=False)),)
    return Figure(
        name="shuffled",
        runs=_readers(task, measures, "shuffled", quick=settings.quick),
        seeds=settings.seeds,
        draw=(_of("questions", "objects"),),
        tables=(questions.questions_table,),
    )


def reader(
    task: TaskConfig,
    *,
    quick: bool,
    layers: int,
    implicit: bool = False,
    mixer: MixerConfig | None = None,
    length: int = 512,
    steps: int = 5700,
    dropout: float = 0.0,
) -> Recipe:
    """Return a training run of a model that answers questions about stories.

    Args:
        task: What to learn.
        quick: Whether it is to take a minute of two CPU cores, or minutes of a GPU.
        layers: Of the stack.
        implicit: Whether the stack is iterated to its fixed point.
        mixer: Mamba2 if left out.
        length: Words a row.
        steps: Of the optimizer, if not quick.
        dropout: Behind each mixer, if not quick, in [0, 1).
    """
    made = trackers.recipe(
        task,
        quick=quick,
        layers=layers,
        mixer=mixer,
        implicit=implicit,
        curriculum=FixedLengths(lengths=(length,), shares=(0.0,)),
        phases=PHASES_QUICK if quick else PHASES_FULL,
        steps=200 if quick else steps,
    )
    made = replace(made, batch_size=32, max_tokens=None)
    if quick:
        return made
    assert isinstance(made.model, ModelConfig)
    model = replace(made.model, dropout=dropout)
    if model.equilibrium is not None:
        # Above the sweeps of every phase, so that a step is one CUDA graph.
        solve = replace(model.equilibrium.solve, check_every=32)
        model = replace(model, equilibrium=replace(model.equilibrium, solve=solve))
    return replace(
        made,
        model=model,
        optim=replace(
            made.optim,
            rate=2e-3,
            schedule=RateSchedule(shape="stable", warmup=0.03, cooldown=0.4),
        ),
        precision="bf16",
        log_every=50,
        checkpoint_every=2000,
    )


def _readers(
    task: TaskConfig, measures: tuple[Measurement, ...], group: str, *, quick: bool
) -> tuple[Run, ...]:
    """An implicit layer, and explicit models beside it."""
    length = 256 if quick else 512
    make = partial(reader, task, quick=quick, length=length, steps=3000, dropout=0.1)
    models = {"implicit-1": make(layers=1, implicit=True), "explicit-1": make(layers=1)}
    if not quick:
        models["implicit-2"] = make(layers=2, implicit=True)
        models["explicit-4"] = make(layers=4)
        models["llama-4"] = make(layers=4, mixer=LLAMA)
    return tuple(
        Run(name=name, group=group, recipe=made, measures=measures) for name, made in models.items()
    )


def _scores(length: int, *, quick: bool, max_batches: int | None = None) -> StoryScores:
    return StoryScores(
        length=256 if quick else length,
        batch_size=16 if quick else 32,
        max_batches=4 if quick else max_batches,
        # All at once, 2,048 words are not settled after a hundred sweeps; the answers are the same.
        window=256,
        max_steps=100,
    )


def _of(part: str, label: str) -> Callable[[list[Record]], Plot | None]:
    """A drawing of the Records of one part, by their label, named after the part."""

    def drawn(records: list[Record]) -> Plot | None:
        told = [record for record in records if record.part == part]
        plot = questions.accuracy_by(told, label=label)
        return plot and replace(plot, name=f"{label}-{part}")

    return drawn


def _folder(settings: Settings, name: str, files: str) -> Path:
    if settings.data is None:
        raise ConfigError(f"data: {name} expected a folder with {files}")
    return settings.data.resolve()
