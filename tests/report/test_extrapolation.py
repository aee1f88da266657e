"""Perplexity against length, and learning by tokens and by time, from Records alone."""

from dataclasses import replace

import pytest

from equilm.record import Record
from equilm.report.extrapolation import perplexity_by_length, validation_curves
from equilm.report.language import (
    evaluations_by_position,
    perplexity_by_position,
    perplexity_by_sweeps,
)


def perplexities(model: str, by_length: dict[int, float], window: int | None) -> list[Record]:
    return [
        Record(
            name="perplexity",
            value=value,
            unit="1",
            model=model,
            task="long",
            split="test",
            length=length,
            window=window if window is None else min(window, length),
        )
        for length, value in by_length.items()
    ]


def learning(model: str, pace: float) -> list[Record]:
    found = []
    for step in (10, 20, 30):
        about = {"model": model, "step": step}
        at = {"seconds": (pace * step, "s", "train"), "loss": (5.0 - step / 20, "nats", "valid")}
        for name, (value, unit, split) in at.items():
            one = Record(name=name, value=value, unit=unit, split=split, task=name, **about)  # type: ignore[arg-type]
            found.append(one)
    return found


def test_every_model_and_mode_has_a_line_against_length() -> None:
    records = perplexities("explicit", {512: 40.0, 8192: 900.0}, None)
    records += perplexities("implicit", {512: 38.0, 8192: 36.0}, 256)
    plot = perplexity_by_length(records)
    assert plot is not None
    drawing = plot.svg()
    assert "explicit" in drawing and "implicit, window 256" in drawing and "8,192" in drawing
    assert perplexity_by_length(perplexities("explicit", {512: 40.0}, None)) is None
    assert perplexity_by_length([]) is None


def test_checkpoints_stand_at_their_step_and_at_their_second() -> None:
    plot = validation_curves([*learning("quick", 0.5), *learning("slow", 2.0)])
    assert plot is not None
    by_step, by_time = plot.figure.axes
    assert [list(line.get_xdata()) for line in by_step.lines[:2]] == [[10, 20, 30]] * 2  # type: ignore[arg-type]
    seconds = [list(line.get_xdata()) for line in by_time.lines[:2]]  # type: ignore[arg-type]
    assert seconds == [pytest.approx([5, 10, 15]), pytest.approx([20, 40, 60])]
    assert list(by_step.lines[0].get_ydata()) == [4.5, 4.0, 3.5]  # type: ignore[arg-type]


def test_curves_need_two_checkpoints_on_text_that_was_kept_back() -> None:
    assert validation_curves(learning("one", 1.0)[:2]) is None
    assert validation_curves([one for one in learning("a", 1.0) if one.split == "train"]) is None


def along(task: str, length: int) -> list[Record]:
    about = {"model": "implicit", "task": task, "split": "test", "length": length, "window": 16}
    edges = [0.0, 16.0, length / 2, float(length)]
    values = {"position_bins": edges, "loss_by_position": [5.0, 4.0, 3.0]}
    values["evaluations_by_position"] = [9.0, 8.0, 7.0]
    return [Record(name=name, value=value, unit="1", **about) for name, value in values.items()]  # type: ignore[arg-type]


def test_only_the_longest_text_is_drawn_along_its_positions() -> None:
    records = [*along("short", 64), *along("long", 512), *along("as long", 512)]
    for draw, values in (
        (perplexity_by_position, [5.0, 4.0, 3.0]),
        (evaluations_by_position, [9.0, 8.0, 7.0]),
    ):
        plot = draw(records)
        assert plot is not None
        titles = [axes.get_title("left").split(", ", 1)[1] for axes in plot.figure.axes]
        assert titles == ["long, test", "as long, test"]
        (axes, _) = plot.figure.axes
        assert list(axes.lines[0].get_ydata()) == values  # type: ignore[arg-type]
        assert "implicit, window 16" in plot.svg()
    assert evaluations_by_position(records[:2]) is None


def test_perplexity_by_sweeps_has_a_panel_a_text() -> None:
    about = {"model": "implicit", "unit": "1", "length": 64, "window": 64, "split": "test"}
    records = [
        Record(name="perplexity_at_sweeps", value=900.0 / count, sweeps=count, task=task, **about)  # type: ignore[arg-type]
        for task in ("a", "b", "c", "d")
        for count in (1, 2, 4)
    ]
    # What tells its limits is of the same lines as what does not.
    records[2::3] = [replace(one, tolerance=0.0, max_steps=3) for one in records[2::3]]
    records[1::3] = [replace(one, tolerance=0.0, max_steps=1) for one in records[1::3]]
    plot = perplexity_by_sweeps(records)
    assert plot is not None
    titles = [axes.get_title("left") for axes in plot.figure.axes]
    assert titles == [f"perplexity, {task}, test" for task in "abc"]
    assert "3 of 4" in plot.caption
    assert all(len(axes.lines[0].get_xdata()) == 3 for axes in plot.figure.axes)  # type: ignore[arg-type]
