"""Which Records belong together, and which of two measurements counts."""

from typing import Any

import numpy as np
import pytest

from equilm.record import Record
from equilm.report import select


def accuracy(length: int, window: int | None, value: float = 1.0, **other: Any) -> Record:
    return Record(
        name="accuracy",
        value=value,
        unit="share",
        length=length,
        window=window,
        **{"model": "m", **other},
    )


def modes(*records: Record) -> dict[str, list[int]]:
    return {line.mode: list(at) for line, at in select.lines(records, "accuracy").items()}


def test_windows_are_named_by_what_they_are() -> None:
    found = modes(accuracy(32, 1), accuracy(16, 1), accuracy(32, 32), accuracy(16, None))
    assert found == {"": [16], "sequential": [16, 32], "simultaneous": [32]}


def test_a_fixed_window_begins_where_it_covers_the_sequence() -> None:
    fixed = [accuracy(length, min(64, length)) for length in (16, 64, 256)]
    assert modes(*fixed) == {"window 64": [16, 64, 256]}
    both = modes(*fixed, accuracy(256, 256))
    assert both == {"window 64": [16, 64, 256], "simultaneous": [16, 64, 256]}


def test_two_windows_share_the_short_sequences() -> None:
    found = modes(*(accuracy(n, min(w, n)) for n in (4, 16, 64) for w in (8, 32)))
    assert found == {"window 8": [4, 16, 64], "window 32": [4, 16, 64]}


def test_the_latest_step_counts_then_the_latest_line() -> None:
    first, better, again = (accuracy(16, 1, v, step=s) for v, s in ((0.1, 5), (0.9, 9), (0.8, 9)))
    assert select.evaluation([better, first], "accuracy") == [better]
    assert select.evaluation([first, better, again], "accuracy") == [again]


def test_training_is_kept_apart_and_in_order() -> None:
    steps = [accuracy(16, None, step=s, split="train", seed=0) for s in (3, 1, 2)]
    assert select.evaluation(steps, "accuracy") == []
    assert [r.step for r in select.training(steps, "accuracy")["m", 0]] == [1, 2, 3]


@pytest.mark.parametrize(
    ("task", "split", "told"),
    [("", "", "m, sequential"), ("A5", "valid", "m, sequential, A5, valid")],
)
def test_a_label_tells_only_what_differs(task: str, split: str, told: str) -> None:
    line = select.Line("m", task, split, "sequential")
    assert select.label(line, [line, select.Line("m", "", "", "sequential")]) == told


def test_limits_of_a_solve_are_kept_apart_and_told_where_they_differ() -> None:
    loose = [accuracy(n, 1, 0.5, tolerance=0.05, max_steps=64) for n in (16, 64)]
    exact = [accuracy(n, 1, 0.9, tolerance=0.01, max_steps=64) for n in (64, 256)]
    few = accuracy(64, 1, 0.1, tolerance=0.01, max_steps=8)
    explicit = accuracy(64, None, model="e")
    same = select.lines([*exact, explicit], "accuracy")
    assert [select.label(line, same) for line in same] == ["m, sequential", "e"]
    told = select.lines([*loose, *exact, few, explicit], "accuracy")
    assert {
        select.label(line, told): [(n, *at) for n, at in by.items()] for line, by in told.items()
    } == {
        "m, sequential, tolerance 0.05, at most 64 steps": [(16, loose[0]), (64, loose[1])],
        "m, sequential, tolerance 0.01, at most 64 steps": [(64, exact[0]), (256, exact[1])],
        "m, sequential, tolerance 0.01, at most 8 steps": [(64, few)],
        "e": [(64, explicit)],
    }


def test_limits_that_are_not_told_are_the_others_if_these_agree() -> None:
    told = [accuracy(n, 1, seed=s, tolerance=0.01, max_steps=64) for s in (1, 2) for n in (16, 64)]
    older, explicit = [accuracy(n, 1, seed=0) for n in (16, 64)], accuracy(16, None)
    found = select.lines([*older, explicit, *told], "accuracy")
    assert {line.mode: [len(at) for at in by.values()] for line, by in found.items()} == {
        "sequential": [3, 3],
        "": [1],
    }
    assert {line.tolerance for line in found} == {0.01, None}
    other = accuracy(16, 1, tolerance=0.1, max_steps=64)
    assert [len(by[16]) for by in select.lines([*older, *told, other], "accuracy").values()] == [
        1,
        2,
        1,
    ]


def test_a_measurement_that_tells_its_limits_replaces_one_that_does_not() -> None:
    older, again = accuracy(16, 1), accuracy(16, 1, 0.5, tolerance=0.01, max_steps=64)
    assert select.evaluation([older, again], "accuracy") == [again]
    assert select.evaluation([again, older], "accuracy") == [older]
    other = accuracy(16, 1, tolerance=0.1, max_steps=64)
    assert select.evaluation([older, again, other], "accuracy") == [older, again, other]


def test_rows_are_ordered_and_filled_up() -> None:
    series = [accuracy(2, 1, row=1), Record(name="a", value=[2.0, 3.0], unit="1", row=0)]
    np.testing.assert_array_equal(select.rows(series), [[2, 3], [1, np.nan]])


def test_longest_takes_one_seed_of_the_longest_length() -> None:
    found = [
        Record(name="evaluations", value=[float(seed)] * n, unit="1", length=n, seed=seed, row=row)
        for n in (2, 4)
        for seed in (7, 8)
        for row in (1, 0)
    ]
    [series] = select.longest(found, "evaluations").values()
    assert [(r.length, r.seed, r.row) for r in series] == [(4, 7, 0), (4, 7, 1)]


def test_an_empty_series_says_nothing() -> None:
    assert not select.lines([Record(name="evaluations", value=[], unit="1")], "evaluations")


def test_models_that_solve_come_first_and_the_order_stays() -> None:
    given = [("explicit", None), ("b", None), ("implicit", 1), ("b", 8), ("explicit", None)]
    told = [
        Record(name="loss", value=at, unit="nats", model=model, window=window)
        for at, (model, window) in enumerate(given)
    ]
    assert [one.value for one in select.implicit_first(told)] == [1, 2, 3, 0, 4]
