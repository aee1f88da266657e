"""An evaluation from a model's attractors: the answers of one by one, in few sweeps, all told."""

from pathlib import Path

import pytest

from equilm.cli.runs import evaluate as evaluate_command
from equilm.measure.evaluate import EvaluationConfig, evaluate
from equilm.record import Record
from tests.decode.automaton import tracker
from tests.measure.models import small

LENGTH = 60


def numbers(attractors: bool) -> dict[str, float]:
    model, task = tracker("S3")
    settings = EvaluationConfig(
        lengths=(10, LENGTH), batch_size=2, tolerance=1e-4, attractors=attractors
    )
    found: dict[str, Record] = {
        one.name: one for one in evaluate(model, task, settings) if one.length == LENGTH
    }
    assert found["accuracy"].window == (LENGTH if attractors else 1)
    return {name: one.value for name, one in found.items() if isinstance(one.value, float)}


def test_the_sweeps_before_and_after_are_told() -> None:
    plain, quick = numbers(attractors=False), numbers(attractors=True)
    assert plain["accuracy"] == quick["accuracy"] == quick["converged"] == 1
    assert quick["loss"] == pytest.approx(plain["loss"], abs=1e-3)
    assert plain["dependent_sweeps"] >= LENGTH
    assert quick["dependent_sweeps"] + quick["discovery_sweeps"] <= 40
    assert quick["attractors"] == 6 and quick["doubtful_transitions"] == 0
    assert 7 * 6 < quick["discovery_evaluations"] <= 7 * 6 * 13
    assert not set(plain) & {
        "attractors",
        "discovery_sweeps",
        "discovery_evaluations",
        "doubtful_transitions",
    }


def test_what_has_no_attractors_says_so() -> None:
    settings = EvaluationConfig(lengths=(8,), attractors=True)
    with pytest.raises(ValueError, match="model: expected an implicit one"):
        list(evaluate(small(implicit=False), tracker("S3")[1], settings))
    with pytest.raises(ValueError, match="windows: expected one beside attractors"):
        EvaluationConfig(windows=(1, 8), attractors=True)


def test_text_has_none() -> None:
    with pytest.raises(ValueError, match="attractors: expected runs of a task"):
        evaluate_command((Path("run"),), attractors=True, text=(Path("book.txt"),))
