"""Figures of other tasks than word problems: regular languages, CatbAbI. Read `plan.py` first."""

from dataclasses import replace
from typing import get_args

from equilm.config import ConfigError
from equilm.measure.evaluate import EvaluationConfig
from equilm.measure.stories import StoryScores
from equilm.report import questions
from equilm.reproduce import trackers
from equilm.reproduce.figures import Lengths, Part, Settings
from equilm.reproduce.plan import Figure, Run
from equilm.tasks import CatbAbIConfig, RegularConfig
from equilm.tasks.regular import Language
from equilm.train.recipe import Recipe
from equilm.train.schedule import FixedLengths, Phase

QUICK_LANGUAGES: tuple[Language, ...] = ("parity", "cycle", "modular")
# Few words of a story change what is asked for, so that all can be solved at once.
STORY_PHASES = (
    Phase(max_steps=0, phantom_steps=4),
    Phase(share=0.3, max_steps=16, phantom_steps=4),
)


def regular(settings: Settings) -> Figure:
    """Languages learnt on at most 40 tokens and tested on 40 to 500."""
    quick = settings.quick
    lengths = (40, 100, 500) if quick else (40, 100, 200, 300, 400, 500)
    tested = Lengths(settings=EvaluationConfig(lengths=lengths, windows=(1,)))
    grows = trackers.up_to(20 if quick else 40, quick=quick)
    runs = []
    for language in QUICK_LANGUAGES if quick else get_args(Language):
        task = RegularConfig(language=language)
        models = {"implicit-1": trackers.recipe(task, quick=quick, implicit=True, curriculum=grows)}
        for name, (layers, mixer) in trackers.rivals(quick=quick).items():
            models[name] = trackers.recipe(
                task, quick=quick, layers=layers, mixer=mixer, curriculum=grows
            )
        for name, made in models.items():
            measures = (Part(part="languages", measure=tested),)
            runs.append(Run(name=name, group=language, recipe=made, measures=measures))
    return Figure(
        name="regular",
        runs=tuple(runs),
        seeds=settings.seeds,
        draw=(),
        tables=(questions.language_table,),
    )


def fig13(settings: Settings) -> Figure:
    """CatbAbI: questions by task and by length of the story, and the sweeps they took.

    Raises:
        ConfigError: Without a folder of the data.
    """
    if settings.data is None:
        raise ConfigError("data: fig13 expected a folder with qa1_train.txt … of bAbI v1.2")
    quick = settings.quick
    tasks = (1, 6, 15) if quick else tuple(range(1, 21))
    task = CatbAbIConfig(folder=settings.data.resolve(), tasks=tasks)
    scores = StoryScores(
        length=256 if quick else 2048,
        batch_size=16,
        max_batches=4 if quick else None,
        max_steps=100,
    )
    runs = []
    for layers in (1,) if quick else (1, 2, 4):
        for implicit in (True, False):
            name = f"{'implicit' if implicit else 'explicit'}-{layers}"
            made = _reader(task, quick=quick, layers=layers, implicit=implicit)
            measures = (Part(part="questions", measure=scores),)
            runs.append(Run(name=name, group="catbabi", recipe=made, measures=measures))
    return Figure(
        name="fig13",
        runs=tuple(runs),
        seeds=settings.seeds,
        draw=(questions.accuracy_by_task, questions.by_story_length),
        tables=(questions.questions_table,),
    )


def _reader(task: CatbAbIConfig, *, quick: bool, layers: int, implicit: bool) -> Recipe:
    made = trackers.recipe(
        task,
        quick=quick,
        layers=layers,
        implicit=implicit,
        curriculum=FixedLengths(lengths=(96 if quick else 256,), shares=(0.0,)),
        phases=STORY_PHASES,
        steps=200 if quick else 20_000,
    )
    return replace(made, batch_size=32 if quick else 256)
