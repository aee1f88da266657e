"""The table of figures: everything builds, and a folder stands for one recipe."""

from pathlib import Path

import pytest

from equilm.config import ConfigError, load
from equilm.nn.model import LanguageModel
from equilm.reproduce import FIGURES
from equilm.reproduce.figures import Settings
from equilm.reproduce.plan import Figure
from equilm.reproduce.trackers import tracker
from equilm.tasks import CatbAbIConfig, TextConfig, WordProblemConfig, build_task
from equilm.train.recipe import Recipe


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
        if isinstance(run.recipe.task, CatbAbIConfig | TextConfig):
            continue
        task = build_task(run.recipe.task)
        LanguageModel(run.recipe.model_for(task))


def test_five_seeds_or_three_or_one() -> None:
    assert all(figure.seeds == (0,) for figure in figures(quick=True).values())
    several = {name: len(figure.seeds) for name, figure in figures(quick=False).items()}
    of_mixers = {name: several.pop(name) for name in ("mixers", "mamba-ablations")}
    assert set(several.values()) == {5} and set(of_mixers.values()) == {3}


def test_the_tracker_in_full_is_the_recipe_that_is_shipped() -> None:
    shipped = load(Recipe, Path(__file__).parents[2] / "recipes" / "s5.toml")
    assert tracker(WordProblemConfig(group="S5"), quick=False) == shipped


def test_catbabi_needs_its_data() -> None:
    with pytest.raises(ConfigError, match="data: fig13 expected a folder"):
        FIGURES["fig13"](Settings(quick=True))


def test_the_command_knows_every_figure() -> None:
    from typing import get_args, get_type_hints

    from equilm.cli.figures import reproduce

    hints = get_type_hints(reproduce)
    assert set(get_args(hints["name"])) == set(FIGURES)
