"""Drawings of state tracking from Records as `equilm reproduce` writes them."""

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from equilm.record import Record
from equilm.report import questions, tracking
from equilm.report.plot import Plot


def depth(layers: int, length: int, value: float, *, window: int | None = None) -> Record:
    return Record(
        name="accuracy_last10",
        value=value,
        unit="share",
        model="m",
        part="depth",
        row=layers,
        length=length,
        window=window,
    )


DEPTH = [
    *(depth(layers, 8, value) for layers, value in ((1, 0.3), (2, 0.95), (4, 1.0))),
    *(depth(layers, 16, value) for layers, value in ((1, 0.2), (2, 0.3), (4, 0.5))),
    depth(1, 8, 1.0, window=1),
    depth(1, 16, 1.0, window=1),
]
HARD = [
    record
    for row in (10, 50)
    for seed in (0, 1)
    for record in (
        Record(name="hard_shares", value=[0.1, 0.9], unit="share", part="hard", row=row, seed=seed),
        Record(
            name="accuracy_by_hard_share",
            value=[1.0, row / 100 + seed / 10],
            unit="share",
            part="hard",
            row=row,
            seed=seed,
        ),
    )
]
SWEEPS = [
    Record(
        name="accuracy", value=value, unit="share", model=model, part="sweeps", sweeps=s, seed=seed
    )
    for model in ("implicit", "unrolled")
    for seed in (0, 1)
    for s, value in ((1, 0.2), (4, 0.6), (16, 1.0))
]
EFFORT = [
    Record(name=name, value=values, unit="1", model="implicit")
    for name, values in {
        "hard_shares": [0.1, 0.5],
        "evaluations_by_hard_share": [5.0, 8.0],
        "evaluations_easy_by_hard_share": [4.0, 4.5],
        "evaluations_hard_by_hard_share": [9.0, 9.5],
        "tolerances": [0.01, 0.1],
        "accuracy_by_tolerance": [1.0, 0.9],
        "evaluations_by_tolerance": [9.0, 4.0],
    }.items()
]
PATHS = [
    Record(name=f"trajectory_{axis}", value=[0.0, 1.0, row], unit="1", row=row, window=w, seed=0)
    for row in range(3)
    for w in (1, 3)
    for axis in "xy"
]
SERIES: dict[str, float | list[float]] = {
    "accuracy": 0.8,
    "accuracy_by_task": [float("nan"), 0.9, float("nan"), 0.7],
    "accuracy_by_story_length": [float("nan"), float("nan"), 0.9, 0.8, 0.4],
    "evaluations_by_story_length": [float("nan"), float("nan"), 5.0, 6.0, 7.0],
}
STORIES = [
    Record(name=name, value=values, unit="1", model=model, part="questions", seed=seed)
    for model in ("implicit-1", "explicit-1")
    for seed in (0, 1)
    for name, values in SERIES.items()
]
DRAWN: list[tuple[Callable[[Iterable[Record]], Plot | None], list[Record], str]] = [
    (tracking.layers_needed, DEPTH, "layers needed for 90% of the last ten tokens"),
    (tracking.hard_share_map, HARD, "percent of tokens right"),
    (tracking.training_sweeps, SWEEPS, "unrolled"),
    (tracking.effort_by_hardness, EFFORT, "easy tokens"),
    (tracking.tolerance_curves, EFFORT, "tolerance of the solve"),
    (tracking.trajectories, PATHS, "token by token"),
    (questions.accuracy_by, STORIES, "questions right"),
    (questions.by_story_length, STORIES, "words of the story up to the question"),
]


@pytest.mark.parametrize(
    ("draw", "records", "word"), DRAWN, ids=lambda one: getattr(one, "__name__", "")
)
def test_drawn_where_there_are_records(
    draw: Callable[[Iterable[Record]], Plot | None], records: list[Record], word: str
) -> None:
    assert draw([Record(name="loss", value=1.0, unit="nats")]) is None
    drawn = draw(iter(records))
    assert drawn is not None
    assert word in drawn.svg()
    assert drawn.caption.endswith(".")


def test_fewest_layers_by_median_seed() -> None:
    drawn = tracking.layers_needed(DEPTH)
    assert drawn is not None
    lines = {line.get_label(): line for line in drawn.figure.axes[0].lines}
    # At 16 no explicit model holds; 8 is above the deepest, 4.
    assert list(np.asarray(lines["explicit"].get_ydata())) == [2, 8]
    assert list(np.asarray(lines["implicit"].get_ydata())) == [1, 1]


def test_the_map_shows_the_median_of_the_seeds() -> None:
    drawn = tracking.hard_share_map(HARD)
    assert drawn is not None
    assert [text.get_text() for text in drawn.figure.axes[0].texts] == ["100", "15", "100", "55"]


def test_tables_tell_every_seed() -> None:
    table = questions.questions_table(STORIES)
    assert table is not None
    assert table.rows[0] == ("implicit-1", "80.0%", "80.0%", "80.0%, 80.0%")
    told = [
        Record(
            name="accuracy",
            value=value,
            unit="share",
            model="m",
            task=task,
            part="languages",
            length=length,
        )
        for task, length, value in (("parity", 40, 1.0), ("parity", 500, 0.5), ("parity", 500, 0.9))
    ]
    found = questions.language_table(told)
    assert found is not None
    assert found.header == ("model", "parity")
    assert found.rows == (("m", "70.0% (90.0%)"),)
    assert questions.language_table([]) is None
    assert questions.questions_table([]) is None


def test_the_duality_in_numbers() -> None:
    values = {"perplexity_difference": 2e-6, "modes_apart": 4e-6}
    told = [Record(name=name, value=value, unit="1", seed=3) for name, value in values.items()]
    assert tracking.duality_table(told) is None
    told += [
        Record(name="perplexity", value=1.5 + window, unit="1", window=window, seed=3)
        for window in (1, 64)
    ]
    table = tracking.duality_table(told)
    assert table is not None
    assert table.rows == (("3", "2.500000", "65.500000", "2.0e-06", "4.0e-06"),)
