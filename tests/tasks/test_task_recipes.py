"""The recipes of tasks load, and their models are built."""

from pathlib import Path

import pytest

from equilm import config
from equilm.nn.model import LanguageModel, ModelConfig
from equilm.tasks import TASKS
from equilm.train.recipe import Recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes/tasks").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_builds(path: Path) -> None:
    recipe = config.load(Recipe, path)
    assert isinstance(recipe.model, ModelConfig)
    LanguageModel(ModelConfig(**{**vars(recipe.model), "vocab_size": 16}))


def test_there_is_one_for_every_new_task() -> None:
    kinds = {config.load(Recipe, path).task.kind for path in RECIPES}
    new = {"copying", "induction", "associative_recall", "list_ops", "pixels", "dna", "speech"}
    new |= {"catbabi", "entities"}
    assert kinds == new <= set(TASKS)


@pytest.mark.parametrize("name", ["induction", "selective-copying"])
def test_implicit_by_two_settings(name: str) -> None:
    path = Path(__file__).parents[2] / f"recipes/tasks/{name}.toml"
    recipe = config.load(Recipe, path, ["model.equilibrium={}", "model.weight_norm=true"])
    assert isinstance(recipe.model, ModelConfig) and recipe.model.equilibrium is not None
