"""Perplexity against length, and learning by tokens and by time, from Records alone."""

import pytest

from equilm.record import Record
from equilm.report.extrapolation import perplexity_by_length, validation_curves


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
