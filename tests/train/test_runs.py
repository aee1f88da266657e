"""Runs are measured: by lengths where a task asks last, by attractors under a name of their own."""

from dataclasses import replace
from pathlib import Path

import pytest

from equilm import record
from equilm.measure.evaluate import EvaluationConfig
from equilm.nn.gru import GRUConfig
from equilm.report import select
from equilm.tasks import InductionConfig
from equilm.train import runs
from equilm.train.runs import evaluate_run
from equilm.train.schedule import FixedLengths
from tests.decode.automaton import tracker
from tests.train.tiny import EXPLICIT, MODEL, TINY, finish


@pytest.mark.parametrize("implicit", [False, True])
def test_each_length_is_asked(implicit: bool, tmp_path: Path) -> None:
    model = replace(MODEL if implicit else EXPLICIT, mixer=GRUConfig())
    recipe = replace(
        TINY,
        model=model,
        task=InductionConfig(vocabulary=4),
        steps=3,
        curriculum=FixedLengths(lengths=(5,)),
    )
    finish(recipe, tmp_path / "run")
    settings = EvaluationConfig(lengths=(4, 9), windows=(1, 0), batch_size=7, max_steps=8)
    told = evaluate_run(tmp_path / "run", settings)
    assert record.read(tmp_path / "run" / "records.jsonl") == told
    right = [r for r in told if r.name == "accuracy"]
    windows = [1, 1, 4, 9] if implicit else [None, None]
    assert [(r.length, r.window) for r in right] == list(zip((4, 9) * 2, windows, strict=False))
    for r in right:
        # One answer a row.
        assert isinstance(r.value, float)
        assert r.value * 7 == pytest.approx(round(r.value * 7))
    assert all(r.model == "run" and r.step == 3 for r in told)
    limits = (0.01, 8) if implicit else (None, None)
    assert {(r.tolerance, r.max_steps) for r in right} == {limits}


def test_another_tolerance_is_another_line(tmp_path: Path) -> None:
    finish(replace(TINY, steps=1), tmp_path / "run")
    for tolerance in (0.01, 0.5):
        settings = EvaluationConfig(lengths=(4, 9), batch_size=2, tolerance=tolerance)
        evaluate_run(tmp_path / "run", settings)
    records = record.read(tmp_path / "run" / "records.jsonl")
    for name in ("accuracy", "evaluations_per_token", "residual_by_sweep"):
        told = select.lines(records, name)
        assert [line.tolerance for line in told] == [0.01, 0.5]
        for line, by_length in told.items():
            assert {r.tolerance for at in by_length.values() for r in at} == {line.tolerance}


def test_what_attractors_tell_stands_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(replace(TINY, steps=1), tmp_path / "run")
    monkeypatch.setattr(runs, "load", lambda *_, **__: tracker("S3")[0])
    plain = EvaluationConfig(lengths=(12,), windows=(0,), batch_size=2)
    for settings in (plain, replace(plain, attractors=True)):
        evaluate_run(tmp_path / "run", settings)
    told = select.lines(record.read(tmp_path / "run" / "records.jsonl"), "accuracy")
    names = [select.label(line, told) for line in told]
    assert names == ["run, simultaneous", "run by attractors, simultaneous"]
