"""The table of figures: everything builds, and a folder stands for one recipe."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure as Canvas

from equilm.config import ConfigError, load
from equilm.nn.model import LanguageModel, ModelConfig
from equilm.record import Record
from equilm.report.plot import Plot
from equilm.reproduce import FIGURES
from equilm.reproduce.figures import Settings, of_task
from equilm.reproduce.plan import Figure
from equilm.reproduce.trackers import rival, rivals, tracker
from equilm.tasks import (
    CatbAbIConfig,
    EntitiesConfig,
    ShuffledObjectsConfig,
    TextConfig,
    WordProblemConfig,
    build_task,
)
from equilm.train.recipe import Recipe

# From folders, which there are none of here.
READ = (CatbAbIConfig, EntitiesConfig, ShuffledObjectsConfig, TextConfig)


def figures(*, quick: bool) -> dict[str, Figure]:
    settings = Settings(quick=quick, data=Path("babi"))
    return {name: make(settings) for name, make in FIGURES.items()}


@pytest.mark.parametrize("quick", [True, False])
def test_a_folder_stands_for_one_recipe(quick: bool) -> None:
    seen: dict[tuple[str, str], Recipe] = {}
    for name, figure in figures(quick=quick).items():
        assert figure.name == name
        within = [(run.group, run.name) for run in figure.runs]
        assert len(set(within)) == len(within)
        for run in figure.runs:
            assert seen.setdefault((run.group, run.name), run.recipe) == run.recipe
    assert len(seen) < sum(len(figure.runs) for figure in figures(quick=quick).values())


@pytest.mark.parametrize("name", FIGURES)
def test_quick_models_fit_their_tasks(name: str) -> None:
    for run in figures(quick=True)[name].runs:
        if isinstance(run.recipe.task, READ):
            continue
        task = build_task(run.recipe.task)
        LanguageModel(run.recipe.model_for(task))


def test_five_seeds_or_three_or_one() -> None:
    assert all(figure.seeds == (0,) for figure in figures(quick=True).values())
    several = {name: len(figure.seeds) for name, figure in figures(quick=False).items()}
    of_mixers = {name: several.pop(name) for name in ("mixers", "mamba-ablations")}
    assert set(several.values()) == {5} and set(of_mixers.values()) == {3}


@pytest.mark.parametrize("group", ["S5", "A5"])
def test_the_tracker_in_full_is_the_recipe_that_is_shipped(group: str) -> None:
    shipped = load(Recipe, Path(__file__).parents[2] / "recipes" / f"{group.lower()}.toml")
    assert tracker(WordProblemConfig(group=group), quick=False) == shipped


@pytest.mark.parametrize("group", ["S5", "A5"])
def test_rivals_are_as_wide_as_the_tracker_and_see_as_many_tokens(group: str) -> None:
    task = WordProblemConfig(group=group)
    ours = tracker(task, quick=False)
    assert isinstance(ours.model, ModelConfig)
    for name in rivals(quick=False):
        made = rival(task, name, quick=False)
        assert isinstance(made.model, ModelConfig)
        assert (made.model.width, made.max_tokens) == (ours.model.width, ours.max_tokens)
        assert made.steps == 2400 and max(made.curriculum.lengths) == 64
        LanguageModel(made.model_for(build_task(task)))


def test_a_drawing_of_one_task_sees_its_records_and_is_named_after_it() -> None:
    names = ("word_problem S5", "word_problem A5")
    records = [Record(name="accuracy", value=0.5, unit="share", task=name) for name in names]
    seen: list[Record] = []

    def draw(given: list[Record]) -> Plot | None:
        seen.extend(given)
        return Plot("accuracy", "Accuracy", "How much.", Canvas()) if given else None

    plot = of_task("word_problem S5", draw)(records)
    assert plot is not None and plot.name == "accuracy-S5" and seen == records[:1]
    assert of_task("word_problem S3", draw)(records) is None


@pytest.mark.parametrize("name", ["fig13", "boxes", "shuffled"])
def test_stories_need_their_data(name: str) -> None:
    with pytest.raises(ConfigError, match=f"data: {name} expected a folder"):
        FIGURES[name](Settings(quick=True))


def test_the_command_knows_every_figure() -> None:
    from typing import get_args, get_type_hints

    from equilm.cli.figures import reproduce

    hints = get_type_hints(reproduce)
    assert set(get_args(hints["name"])) == set(FIGURES)
