"""A recipe is read strictly and says which model it builds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from equilm import config
from equilm.config import ConfigError
from equilm.nn.equilibrium import EquilibriumConfig
from equilm.nn.model import LanguageModel, parameter_count
from equilm.nn.presets import preset
from equilm.solve.gradient import Phantom
from equilm.tasks import TextConfig, WordProblemConfig, build_task
from equilm.train.recipe import Recipe, use_device
from tests.train.tiny import MODEL, TINY

RECIPES = sorted(Path("recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_recipes_that_come_along_are_valid(path: Path) -> None:
    recipe = config.load(Recipe, path)
    if isinstance(recipe.task, TextConfig):  # its data is the user's: test_language_recipes.py
        return
    model = recipe.model_for(build_task(recipe.task))
    with torch.device("meta"):
        assert parameter_count(LanguageModel(model)) > 0


def test_there_are_such_recipes() -> None:
    assert RECIPES


def test_a_recipe_comes_back_from_its_file(tmp_path: Path) -> None:
    for index, recipe in enumerate((TINY, Recipe())):
        config.save(recipe, tmp_path / f"{index}.json")
        assert config.load(Recipe, tmp_path / f"{index}.json") == recipe


def test_a_preset_takes_the_vocabulary_of_the_task() -> None:
    task = build_task(WordProblemConfig(group="A5"))
    assert replace(TINY, model="mamba2-130m").model_for(task) == replace(
        preset("mamba2-130m"), vocab_size=60
    )
    assert replace(TINY, model=MODEL).model_for(task).vocab_size == 60
    larger = replace(MODEL, vocab_size=64)
    assert replace(TINY, model=larger).model_for(task) == larger
    with pytest.raises(ValueError, match=r"vocab_size: expected an integer >= 60, .* got 59"):
        replace(TINY, model=replace(MODEL, vocab_size=59)).model_for(task)


def test_a_residual_weight_is_said_by_the_phases_or_by_the_model() -> None:
    own = EquilibriumConfig(gradient=Phantom(residual_weight=3.0))
    charging = replace(MODEL, equilibrium=own)
    with pytest.raises(ValueError, match=r"^model.*residual_weight: expected 0 .*, got 3.0"):
        replace(TINY, model=charging)
    assert replace(TINY, model=charging, phases=()).model == charging
    told = config.encode(TINY)
    assert [phase["residual_weight"] for phase in told["phases"]] == [0.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("stepz=3", "stepz: unknown key; did you mean `steps`?"),
        ("task.groop=S3", "task.groop: unknown key; did you mean `group`?"),
        ("steps=0", "steps: expected an integer >= 1, got 0"),
        ("steps=many", "steps: expected a valid integer, got 'many'"),
        ("batch_size=-4", "batch_size: expected an integer >= 1, got -4"),
        ("seed=-1", "seed: expected an integer in [0, 2³²), got -1"),
        ("model=mamba2-13m", "did you mean 'mamba2-130m'?"),
        ("task.group=S9", "got 'S9' in 'S9', nearest is 'S"),
        ("optim.rate=-1", "optim.rate: expected a number > 0, got -1"),
        ("optim.schedule.shape=lineer", "did you mean `linear`?"),
        ("curriculum.lengths=[0]", "curriculum.lengths: expected one or more integers >= 1"),
        ("curriculum.kind=adaptiv", "did you mean `adaptive`?"),
        ("phases.0.max_steps=-1", "phases.0.max_steps: expected an integer >= 0, got -1"),
        ("phases.7.max_steps=1", "there is no `7` in an array of 2"),
        ("precision=fp8", "precision: expected 'bf16' or 'float32', got 'fp8'"),
        ("steps", "override 'steps': expected key=value"),
    ],
)
def test_a_mistake_is_one_line(override: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(Recipe, None, [override])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_device_is_what_there_is() -> None:
    assert use_device("cpu").type == "cpu"
    there = torch.cuda.is_available()
    assert use_device("auto").type == ("cuda" if there else "cpu")
    if not there:
        with pytest.raises(ValueError, match="device: expected cpu on this machine, got cuda"):
            use_device("cuda")


def test_the_demo_is_saved_with_a_solve_to_use_it_by() -> None:
    recipe = config.load(Recipe, "recipes/demo.toml")
    model = recipe.model_for(build_task(recipe.task))
    assert model.equilibrium is not None
    solve = model.equilibrium.solve
    # A window needs as many evaluations as it has tokens, and more; all at once would need T.
    assert solve.window is not None and solve.max_steps >= 4 * solve.window
    assert solve.tolerance <= 0.01
