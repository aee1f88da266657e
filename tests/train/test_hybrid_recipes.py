"""The recipes of hybrids train, explicit and implicit, by the words that stand at their head."""

import math
import re
from pathlib import Path

import pytest

from equilm.config import load
from equilm.nn.equilibrium import Equilibrium
from equilm.train.recipe import Recipe
from equilm.train.trainer import Trainer

RECIPES = sorted(Path("recipes/hybrids").glob("*.toml"))
SMALL = ["steps=2", "batch_size=4"]


def test_there_are_such_recipes() -> None:
    assert [path.stem for path in RECIPES] == ["griffin-small", "jamba-small", "zamba-small"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("implicit", [False, True])
def test_two_steps(path: Path, implicit: bool, tmp_path: Path) -> None:
    head = " ".join(line[2:] for line in path.read_text().splitlines() if line.startswith("# "))
    told = re.findall(r"--set '?([^' ]*(?: [^' ]*)?)'?(?= --set|$)", head)
    assert len(told) == 2
    trainer = Trainer(load(Recipe, path, SMALL + (told if implicit else [])), tmp_path)
    assert isinstance(trainer.model.core, Equilibrium) == implicit
    for report in trainer.run():
        assert math.isfinite(report.loss)
        assert (report.sweeps > 0) == implicit
