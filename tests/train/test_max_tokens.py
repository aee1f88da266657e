"""Longer sequences in smaller batches."""

from dataclasses import replace
from pathlib import Path

import pytest

from equilm import record
from equilm.train.recipe import Recipe
from equilm.train.schedule import FixedLengths
from equilm.train.trainer import Trainer
from tests.train.tiny import TINY, finish


def test_rows_by_length() -> None:
    recipe = Recipe(batch_size=64, max_tokens=240)
    assert [recipe.rows(length) for length in (2, 4, 8, 16, 300)] == [60 + 4, 60, 30, 15, 1]
    assert [recipe.rows(length, processes=4) for length in (2, 8, 16, 300)] == [64, 28, 12, 4]
    assert Recipe(batch_size=64).rows(10_000) == 64


def test_a_step_takes_the_rows_of_its_length(tmp_path: Path) -> None:
    lengths = FixedLengths(lengths=(2, 8), shares=(0.0, 0.5))
    recipe = replace(TINY, steps=4, batch_size=4, max_tokens=16, curriculum=lengths)
    trainer = Trainer(recipe, tmp_path)
    taken = [tuple(trainer._batch(length).tokens_BT.shape) for length in (2, 8)]
    assert taken == [(4, 2), (2, 8)]
    assert [report.length for report in trainer.run()] == [2, 2, 8, 8]


def test_a_limit_above_every_batch_changes_nothing(tmp_path: Path) -> None:
    found = []
    for name, limit in (("none", None), ("high", 10_000)):
        finish(replace(TINY, steps=3, max_tokens=limit), tmp_path / name)
        lines = record.read(tmp_path / name / "metrics.jsonl")
        found.append([line.value for line in lines if line.name == "loss"])
    assert found[0] == found[1]


def test_no_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens: expected an integer >= 1, got 0"):
        Recipe(max_tokens=0)
