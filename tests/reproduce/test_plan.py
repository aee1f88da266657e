"""Runs of two steps: what is there is used, what changed is done again."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from equilm import record
from equilm.cli.figures import reproduce as command
from equilm.config import ConfigError
from equilm.nn.model import LanguageModel
from equilm.record import Record
from equilm.report.tables import Table
from equilm.reproduce.plan import Figure, Run, reproduce
from equilm.tasks import Task
from equilm.train import schedule
from equilm.train.recipe import Recipe
from equilm.train.schedule import AdaptiveLengths
from equilm.train.trainer import Trainer
from tests.train.tiny import TINY

SHORT: Recipe = replace(TINY, steps=2, checkpoint_every=1)
MEASURED: list[int] = []


@dataclass(frozen=True, kw_only=True)
class Weight:
    scale: int = 1

    def records(self, model: LanguageModel, task: Task) -> Iterator[Record]:
        MEASURED.append(self.scale)
        yield Record(name="weight", value=model.embedding.sum().item() * self.scale, unit="1")
        yield Record(name="series", value=[1.0], unit="1", row=7)


def told(records: list[Record]) -> Table | None:
    return Table("weights", ("model", "weight"), tuple((r.model, "1") for r in records))


def figure(*, scale: int = 1, recipe: Recipe = SHORT, name: str = "one") -> Figure:
    run = Run(name="tiny", recipe=recipe, measures=(Weight(scale=scale),), about={"row": 3})
    return Figure(name=name, runs=(run,), seeds=(0, 1), draw=(lambda _: None,), tables=(told,))


class Watch:
    """Counts the steps that were trained."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, trainer: Trainer, name: str) -> None:
        assert name == "tiny"
        self.steps += sum(1 for _ in trainer.run())


@pytest.fixture
def watch() -> Watch:
    MEASURED.clear()
    return Watch()


def silent(line: str) -> None:
    pass


def test_what_is_missing_is_done_and_what_is_there_is_used(tmp_path: Path, watch: Watch) -> None:
    first = reproduce(figure(), tmp_path, watch=watch, say=silent)
    assert (watch.steps, MEASURED) == (4, [1, 1])
    assert [path.name for path in first] == ["records.jsonl", "tables.md"]
    before = first[0].read_bytes()
    assert reproduce(figure(), tmp_path, watch=watch, say=silent) == first
    assert (watch.steps, MEASURED) == (4, [1, 1])
    assert first[0].read_bytes() == before


def test_records_are_enough_to_draw_once_the_checkpoints_are_gone(
    tmp_path: Path, watch: Watch
) -> None:
    first = reproduce(figure(), tmp_path, watch=watch, say=silent)
    before = first[0].read_bytes()
    for folder in (tmp_path / "runs").rglob("step-*"):
        shutil.rmtree(folder)
    for again in (watch, None):
        assert reproduce(figure(), tmp_path, watch=again, say=silent) == first
        assert (watch.steps, MEASURED) == (4, [1, 1])
        assert first[0].read_bytes() == before


def test_records_tell_seed_and_what_they_are_about(tmp_path: Path, watch: Watch) -> None:
    (path, _) = reproduce(figure(), tmp_path, watch=watch, say=silent)
    found = [r for r in record.read(path) if r.name == "weight"]
    assert all(r.row == 7 for r in record.read(path) if r.name == "series")
    assert [(r.model, r.seed, r.row, r.step) for r in found] == [
        ("tiny", 0, 3, 2),
        ("tiny", 1, 3, 2),
    ]
    assert found[0].value != found[1].value


def test_a_changed_measurement_is_measured_again_and_trains_nothing(
    tmp_path: Path, watch: Watch
) -> None:
    reproduce(figure(), tmp_path, watch=watch, say=silent)
    reproduce(figure(scale=2), tmp_path, watch=watch, say=silent)
    assert (watch.steps, MEASURED) == (4, [1, 1, 2, 2])
    # Another figure of the same runs keeps its own Records.
    reproduce(figure(name="other"), tmp_path, watch=watch, say=silent)
    reproduce(figure(scale=2), tmp_path, watch=watch, say=silent)
    assert (watch.steps, MEASURED) == (4, [1, 1, 2, 2, 1, 1])


def test_a_run_that_learnt_its_task_early_is_not_trained_on(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "LEARNT_STEPS", 1)
    learnt = AdaptiveLengths(lengths=(5,), until=1e-3)
    recipe = replace(SHORT, steps=9, batch_size=16, curriculum=learnt)
    for scale in (1, 2):
        reproduce(figure(scale=scale, recipe=recipe), tmp_path, watch=watch, say=silent)
    assert (watch.steps, MEASURED) == (2, [1, 1, 2, 2])


def test_missing_runs_are_counted(tmp_path: Path, watch: Watch) -> None:
    told: list[str] = []
    reproduce(figure(), tmp_path, watch=None, say=told.append)
    assert told == ["one: 2 of 2 runs are missing or not finished"]
    told.clear()
    first = replace(figure(), seeds=(0,))
    reproduce(first, tmp_path, watch=watch, say=told.append)
    reproduce(figure(), tmp_path, watch=None, say=told.append)
    done = tmp_path / "runs" / "seed-0" / "main" / "tiny"
    assert told == [
        f"one 1/1: {done}",
        f"one 1/2: {done}",
        "one: 1 of 2 runs are missing or not finished",
    ]


def test_an_interrupted_run_goes_on(tmp_path: Path, watch: Watch) -> None:
    def stop(trainer: Trainer, name: str) -> None:
        next(iter(trainer.run()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce(figure(), tmp_path, watch=stop, say=silent)
    reproduce(figure(), tmp_path, watch=watch, say=silent)
    # The step of the first run is lost only if its checkpoint was not written yet.
    assert watch.steps in (3, 4)
    whole = reproduce(figure(), tmp_path / "whole", watch=Watch(), say=silent)
    again = reproduce(figure(), tmp_path, watch=watch, say=silent)
    values = [[r.value for r in record.read(paths[0]) if r.row == 3] for paths in (whole, again)]
    assert torch.equal(*map(torch.tensor, values))


def test_another_recipe_of_the_same_name_is_refused(tmp_path: Path, watch: Watch) -> None:
    reproduce(figure(), tmp_path, watch=watch, say=silent)
    other = figure(recipe=replace(SHORT, batch_size=5))
    with pytest.raises(ConfigError, match="was begun with another recipe"):
        reproduce(other, tmp_path, watch=watch, say=silent)


def test_a_seed_told_twice_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seeds in (None, (3,), (3, 1, 3)):
        with pytest.raises(
            ValueError, match=r"fig2: expected a finished run of it in .*, got none"
        ):
            command("fig2", quick=True, out=tmp_path, seeds=seeds, trained_only=True)
    assert not [*tmp_path.iterdir()]
    told = re.findall(r"fig2: (\d+) of (\d+) runs are missing", capsys.readouterr().out)
    ones = int(told[0][0])
    assert told == [(str(n), str(n)) for n in (ones, ones, 2 * ones)]
    with pytest.raises(ValueError, match="seeds: expected one or more integers, got none"):
        command("fig2", quick=True, out=tmp_path, seeds=(), trained_only=True)
