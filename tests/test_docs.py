"""Recipes that the documentation shows are whole: a reader may copy them as they stand."""

import ast
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


def named(path: Path) -> list[Path]:
    """The files of the package that a module's docstring names."""
    told = ast.get_docstring(ast.parse(path.read_text())) or ""
    found = []
    for name in re.findall(r"`([\w/]+\.py)`", told):
        places = [home / name for home in (path.parent, ROOT / "equilm", ROOT)]
        there = [place for place in places if place.exists()]
        assert there, f"{path}: names {name}, which is not there"
        found.append(there[0])
    return found


def test_from_the_first_file_a_reader_comes_to_all_rooms() -> None:
    names = {path: named(path) for path in (ROOT / "equilm").rglob("*.py")}
    seen, ahead = set(), [ROOT / "equilm" / "__init__.py"]
    while ahead:
        path = ahead.pop()
        if path in names and path not in seen:
            seen.add(path)
            ahead += names[path]
    spine = ("nn/mixer.py", "nn/equilibrium.py", "solve/iterate.py", "nn/model.py")
    for name in (*spine, "train/trainer.py", "decode/engine.py", "decode/generate.py"):
        assert ROOT / "equilm" / name in seen, name
