"""Figures of stories: other files of boxes are scored, and recipes are those that are shipped."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from equilm import config
from equilm.measure.stories import StoryScores
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import LanguageModel, ModelConfig
from equilm.reproduce import FIGURES
from equilm.reproduce.figures import Settings
from equilm.reproduce.stories import OtherBoxes
from equilm.tasks.entities import Entities, EntitiesConfig
from equilm.train.recipe import Recipe
from tests.tasks.folders import boxes

OTHER = OtherBoxes(part="longer", test="more", scores=StoryScores(length=60, batch_size=2))


def reader(task: Entities) -> LanguageModel:
    mixer = Mamba2Config(head_width=16, state_size=8)
    config = ModelConfig(vocab_size=task.vocab_size, width=16, num_layers=1, mixer=mixer)
    return LanguageModel(config, generator=torch.Generator().manual_seed(0)).eval()


def test_all_questions_of_the_other_file_are_scored(tmp_path: Path) -> None:
    folder = boxes(tmp_path)
    lines = (folder / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "more.jsonl").write_text(lines[0] * 3, encoding="utf-8")
    task = Entities(EntitiesConfig(folder=folder))
    found = list(OTHER.records(reader(task), task))
    assert {record.part for record in found} == {"longer"}
    told = {record.name: record.value for record in found}
    # Two boxes after none, one and two operations, three times.
    assert told["questions"] == 18.0
    assert told["questions_by_operations"] == [6.0, 9.0, 3.0]


def test_words_that_were_not_learnt_are_told(tmp_path: Path) -> None:
    folder = boxes(tmp_path)
    text = (folder / "test.jsonl").read_text(encoding="utf-8")
    (folder / "more.jsonl").write_text(text.replace("fig", "drum"), encoding="utf-8")
    task = Entities(EntitiesConfig(folder=folder))
    with pytest.raises(ValueError, match="test: expected the words of test, got others"):
        list(OTHER.records(reader(task), task))
    other = replace(OTHER, test="absent")
    with pytest.raises(ValueError, match=r"absent\.jsonl"):
        list(other.records(reader(task), task))


@pytest.mark.parametrize(("figure", "name"), [("fig13", "catbabi"), ("boxes", "boxes")])
def test_the_implicit_layer_is_the_recipe_that_is_shipped(figure: str, name: str) -> None:
    shipped = config.load(Recipe, Path(__file__).parents[2] / f"recipes/tasks/{name}.toml")
    made = {run.name: run.recipe for run in FIGURES[figure](Settings(data=Path("data"))).runs}
    assert replace(made["implicit-1"], task=shipped.task) == shipped
    # Models are compared, so that they are trained alike.
    assert isinstance(shipped.model, ModelConfig)
    for one in made.values():
        assert isinstance(one.model, ModelConfig)
        assert (one.steps, one.model.dropout) == (shipped.steps, shipped.model.dropout)
