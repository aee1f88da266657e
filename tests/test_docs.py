"""Recipes that the documentation shows are whole: a reader may copy them as they stand."""

import re
import tomllib
from pathlib import Path

import pytest

from equilm.config import decode
from equilm.train.recipe import Recipe

ROOT = Path(__file__).parents[1]
BLOCKS = [
    pytest.param(block, id=f"{path.name} {number}")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, block in enumerate(
        re.findall(r"^```toml\n(.*?)^```", path.read_text(), re.M | re.S)
    )
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_recipe_shown_is_one(block: str) -> None:
    data = tomllib.loads(block)
    decode(Recipe, data)
    # With a task of one's own, the default model, lengths and steps are those of another.
    assert "task" not in data or {"model", "steps", "batch_size", "curriculum"} <= data.keys()
