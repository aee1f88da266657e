"""Figures show the numbers they were given, and leave matplotlib as it was."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from equilm.record import Record
from equilm.report import curves, figures, maps, plot
from equilm.report.plot import End, Plot
from equilm.report.select import Line
from equilm.report.style import DARK, LIGHT, style


@pytest.fixture(scope="module")
def drawn(records: list[Record]) -> dict[str, Plot]:
    return {each.name: each for each in figures.draw(records)}


def test_every_figure_is_drawn(drawn: dict[str, Plot]) -> None:
    assert list(drawn) == ["accuracy", "position", "effort", "residual", "jacobian", "training"]
    for each in drawn.values():
        root = ElementTree.fromstring(each.svg())
        assert root.attrib["role"] == "img"
        assert root[0].text == each.title
        assert root[1].text == each.caption
        assert each.caption.endswith(".")


def test_ids_are_used_and_their_own(drawn: dict[str, Plot]) -> None:
    drawings = [each.svg() for each in drawn.values()]
    ids = [found for drawing in drawings for found in re.findall(r'\bid="([^"]+)"', drawing)]
    used = {u for drawing in drawings for u in re.findall(r'(?:url\(#|href="#)([^)"]+)', drawing)}
    assert len(ids) == len(set(ids))
    assert used <= set(ids)


def test_the_same_records_give_the_same_drawing(records: list[Record]) -> None:
    first, second = (curves.accuracy_by_length(records) for _ in range(2))
    assert first is not None and second is not None
    assert first.svg() == second.svg()


def test_accuracy_lines_are_the_records(drawn: dict[str, Plot], records: list[Record]) -> None:
    [axes] = drawn["accuracy"].figure.axes
    wanted = [
        r.value for r in records
        if r.name == "accuracy" and r.model == "explicit" and r.split == "test"
    ]  # fmt: skip
    assert any(np.array_equal(line.get_ydata(), wanted) for line in axes.lines)
    told = {text.get_text() for text in axes.texts}
    assert {"implicit, sequential", "explicit", "guessing", "trained up to 20 tokens"} <= told


def test_position_keeps_the_mean(drawn: dict[str, Plot]) -> None:
    [axes] = drawn["position"].figure.axes
    explicit = next(line for line in axes.lines if line.get_color() == LIGHT["line-1"])
    x, y = (np.asarray(values, dtype=float) for values in explicit.get_data())
    assert x[0] == 1 and y[0] == pytest.approx(1, abs=0.01)
    assert y[-1] == pytest.approx(1 / 6, abs=1e-6)


def test_training_survives_numbers_that_are_not(records: list[Record]) -> None:
    broken = [replace(r, value=float("nan")) if r.step == 600 else r for r in records]
    figure = curves.training_curves([r for r in broken if r.split == "train"])
    assert figure is not None
    assert len(figure.figure.axes) == 3
    assert "longer" in figure.caption
    figure = curves.training_curves([r for r in broken if r.name == "loss"])
    assert figure is not None
    assert len(figure.figure.axes) == 1
    assert "longer" not in figure.caption


def test_effort_leaves_out_models_without_a_solve(drawn: dict[str, Plot]) -> None:
    panels = [axes for axes in drawn["effort"].figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in panels] == [
        "implicit, sequential",
        "implicit, window 64",
        "implicit, simultaneous",
    ]
    ones = [Record(name="evaluations", value=[1.0] * 8, unit="evaluations", length=8, row=0)]
    assert maps.effort_map(ones) is None


def test_omitted_panels_are_told() -> None:
    effort = [
        Record(name="evaluations", value=[4.0] * 8, unit="1", model=m, length=8) for m in "abcde"
    ]
    figure = maps.effort_map(effort)
    assert figure is not None
    assert figure.caption.endswith("Shown are 3 of 5.")


def test_jacobians_share_one_scale_and_tell_their_difference(drawn: dict[str, Plot]) -> None:
    panels = [axes for axes in drawn["jacobian"].figure.axes if axes.images]
    limits = {axes.images[0].get_clim() for axes in panels}
    assert len(panels) == 3
    assert len(limits) == 1
    low, high = limits.pop()
    assert low == -high
    assert re.fullmatch(r"differs by at most \de-12", panels[1].get_xlabel())


def test_the_caption_of_jacobians_tells_both_magnitudes() -> None:
    matrix = 0.003 * (1 - np.eye(8)) + 0.875 * np.eye(8)
    told = [
        Record(name="jacobian_autograd", value=row, unit="1", model="m", row=at, length=8, window=1)
        for at, row in enumerate(matrix.tolist())
    ]
    drawn = maps.jacobian_maps([replace(one, split="test", task="t") for one in told])
    assert drawn is not None
    assert "0.88 on it (median), 0.003 beside it" in drawn.caption


@pytest.mark.parametrize(("steps", "banded"), [(64, False), (1000, True)])
def test_a_band_is_told_where_there_is_one(steps: int, banded: bool) -> None:
    losses = [
        Record(name="loss", value=1 / (s + 1), unit="nats", model="m", split="train", step=s)
        for s in range(steps)
    ]
    drawn = curves.training_curves(losses)
    assert drawn is not None
    assert ("its band" in drawn.caption) == banded


def test_jacobian_of_one_seed_is_square(records: list[Record]) -> None:
    seeds = [replace(r, seed=seed) for seed in (1, 2) for r in records if "jacobian" in r.name]
    figure = maps.jacobian_maps(seeds)
    assert figure is not None
    assert {axes.images[0].get_size() for axes in figure.figure.axes if axes.images} == {(24, 24)}


def test_a_name_is_not_mathematics() -> None:
    losses = [
        Record(name="loss", value=s / 7, unit="nats", model="<a>$x_1$&", split="train", step=s)
        for s in range(9)
    ]
    figure = curves.training_curves(losses)
    assert figure is not None
    assert "&lt;a&gt;$x_1$&amp;" in figure.svg()


def test_a_length_that_never_changes_has_no_panel() -> None:
    def panels(lengths: tuple[float, ...]) -> list[str]:
        about = {"model": "m", "split": "train", "unit": "1"}
        values = {"loss": (3.0, 2.0, 1.0), "length": lengths}
        told = [
            Record(name=name, value=value, step=step, **about)  # type: ignore[arg-type]
            for name, series in values.items()
            for step, value in enumerate(series)
        ]
        figure = curves.training_curves(told)
        assert figure is not None
        return [axes.get_title("left") for axes in figure.figure.axes]

    assert panels((8.0, 8.0, 8.0)) == ["loss, nats"]
    assert panels((8.0, 8.0, 16.0)) == ["loss, nats", "length in training, tokens"]


def test_modes_of_a_model_share_a_colour_and_its_tolerances_do_not() -> None:
    one = Line("m", "A5", "test", "sequential", 0.01, 64)
    lines = [one, replace(one, mode="simultaneous"), replace(one, tolerance=0.05)]
    first, same, other = curves.colours(lines).values()
    assert first == same != other


def test_nothing_to_draw(records: list[Record]) -> None:
    assert figures.draw([r for r in records if r.name == "chance"]) == []


def test_a_thin_line_a_seed_and_their_median() -> None:
    shares = {0: (1.0, 0.4), 1: (0.9, 0.1), 2: (0.8, 0.9)}
    records = [
        Record(name="accuracy", value=share, unit="share", model="a", length=length, seed=seed)
        for seed, both in shares.items()
        for length, share in zip((64, 256), both, strict=True)
    ]
    drawn = curves.every_seed_by_length(records)
    assert drawn is not None
    [axes] = drawn.figure.axes
    found = [tuple(line.get_ydata()) for line in axes.lines]  # type: ignore[arg-type]
    assert found[:4] == [*shares.values(), (0.9, 0.4)]


def test_labels_do_not_overlap() -> None:
    with style():
        _, [axes] = plot.canvas(height=2)
        plot.share_axis(axes)
        wanted = {f"line {n}": End(y, LIGHT["ink"], {}) for n, y in enumerate((1, 1, 0.99, 0.2))}
        plot.label_ends(axes, wanted | {"lost": End(np.nan, LIGHT["ink"], {})}, height=2)
    at = {text.get_text(): float(text.get_position()[1]) for text in axes.texts}
    assert at["line 0"] > at["line 1"] > at["line 2"] > at["line 3"] > at["lost"]
    assert min(-np.diff(sorted(at.values(), reverse=True))) > 0.07
    assert max(at.values()) <= 1


def test_blocks_pass_over_nan() -> None:
    series = np.array([[1.0, np.nan, 3.0, 5.0, 7.0], [np.nan] * 5])
    np.testing.assert_array_equal(plot.blocks(series, 2), [[1, 4, 7], [np.nan] * 3])


def test_files(records: list[Record], tmp_path: Path) -> None:
    accuracy = [r for r in records if r.name == "accuracy" and r.split == "test"]
    [png] = figures.save(tmp_path / "new", accuracy)
    assert png.name == "accuracy.png"
    assert png.read_bytes().startswith(b"\x89PNG")
    [svg] = figures.save(tmp_path, accuracy, suffix=".svg")
    ElementTree.parse(svg)


def test_matplotlib_stays_as_it_was(records: list[Record]) -> None:
    settings = [name for name in matplotlib.rcParams if name != "backend"]
    before = [matplotlib.rcParams[name] for name in settings]
    figure = curves.accuracy_by_length(records)
    assert figure is not None and figure.svg()
    assert [matplotlib.rcParams[name] for name in settings] == before


def test_both_pages_have_every_colour() -> None:
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT)
