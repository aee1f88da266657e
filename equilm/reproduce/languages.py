"""The figure of regular languages and beyond. Read `plan.py` first; next: `stories.py`."""

from typing import get_args

from equilm.measure.evaluate import EvaluationConfig
from equilm.report import questions
from equilm.reproduce import trackers
from equilm.reproduce.figures import Lengths, Part, Settings
from equilm.reproduce.plan import Figure, Run
from equilm.tasks import RegularConfig
from equilm.tasks.regular import Language

QUICK_LANGUAGES: tuple[Language, ...] = ("parity", "cycle", "modular")


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
