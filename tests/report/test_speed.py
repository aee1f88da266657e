"""Tables and curves of speed show what was measured, and nothing that was not."""

import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from equilm.record import Record
from equilm.report import figures
from equilm.report.page import write_page
from equilm.report.plot import Plot
from equilm.report.scaling import scaling_curves
from equilm.report.speed import cell, label, measured, speed_tables
from equilm.report.tables import Table

UNITS = {"time": "ms", "speed": "tokens/s", "memory": "GiB", "rate": "TFLOP/s"}


def row(what: str, values: dict[str, float], **about: object) -> list[Record]:
    """The Records of one row; an implicit model of (4+1) unless told otherwise."""
    given = {"model": "mamba2-130m", "batch": 16, "length": 2048, "sweeps": 4, "phantom": 1}
    given |= {"device": "NVIDIA H200", "precision": "bf16", **about}
    return [
        Record(name=f"bench_{what}_{key}", value=v, unit=UNITS.get(key, "ms"), **given)  # type: ignore[arg-type]
        for key, v in values.items()
    ]


FULL = {
    "time": 326.4,
    "speed": 100_392.0,
    "rate": 312.345,
    "bandwidth": 1.5,
    "memory": 41.7,
    "floor_compute": 150.0,
    "floor_memory": 120.0,
    "reference": 372.4,
    "reference_memory": 33.5,
    "goal": 120.0,
    "goal_memory": 45.0,
}


def curves() -> list[Record]:
    found = []
    for batch in (1, 2, 4):
        found += row("by_batch", {"time": 10.0 * batch, "memory": 1.0}, batch=batch)
    for length in (256, 512, 1024):
        found += row("by_length", {"time": 80.0, "memory": 1.0}, length=length)
    for sweeps in (0, 8, 32):
        found += row("by_sweeps", {"time": 20.0 + sweeps, "memory": 3.0}, sweeps=sweeps)
    for phantom in (1, 2, 3):
        found += row("by_phantom", {"time": 9.0, "memory": 3.0 * phantom}, phantom=phantom)
    return found


def shown(table: Table, width: int = 80) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table.terminal())
    return capture.get().splitlines()


def test_a_row_is_named_by_its_model_depth_and_shape() -> None:
    named = label("mamba2-130m", batch=16, length=2048, depth=(24, 4), precision="fp8")
    assert named == "mamba2-130m 24+4 fp8 16×2048"
    assert label("x", batch=1, length=2, depth=None, precision="bf16") == "x 1×2"


def test_what_came_out_and_how_near_its_floor() -> None:
    outcome, efficiency = speed_tables(row("train", FULL))
    assert outcome.title == "A training step on NVIDIA H200"
    assert dict(zip(outcome.header, outcome.rows[0], strict=True)) == {
        "": "mamba2-130m 4+1 16×2048",
        "ms": "326.4",
        "goal ms": "≤ 120",
        "times faster": "1.141",
        "tokens/s": "100,392",
        "GiB": "41.7",
        "goal GiB": "≤ 45, reached",
    }
    assert dict(zip(efficiency.header, efficiency.rows[0], strict=True)) == {
        "": "mamba2-130m 4+1 16×2048",
        "TFLOP/s": "312.3",
        "TB/s": "1.5",
        "floor ms": "150 compute",
        "× floor": "2.18",
    }


def test_a_goal_counts_as_reached_at_its_own_figure() -> None:
    outcome, _ = speed_tables(row("train", FULL | {"time": 120.0}))
    assert "≤ 120, reached" in outcome.rows[0]


def test_without_a_known_floor_one_table_says_all() -> None:
    [table] = speed_tables(row("decode", {"time": 1.5, "speed": 2.0, "rate": 0.0004}, device="cpu"))
    assert table.header == ("", "ms", "tokens/s", "TFLOP/s")
    assert table.rows[0][1:] == ("1.5", "2", "0.0004")


def test_a_value_nobody_measured_is_a_dash() -> None:
    records = row("train", {"time": 1.0}) + row("train", {"speed": 2.0}, batch=1)
    [table] = speed_tables(records)
    assert [line[1:] for line in table.rows] == [("1", "—"), ("—", "2")]


def test_of_what_was_measured_twice_the_last_counts() -> None:
    before, after = row("train", {"time": 9.0, "memory": 1.0}), row("train", {"time": 8.0})
    [one] = measured([*before, *(replace(r, commit="later") for r in after)])
    assert one.values == {"time": 8.0, "memory": 1.0}


def test_devices_and_benchmarks_have_tables_of_their_own() -> None:
    records = row("train", {"time": 1.0}) + row("train", {"time": 9.0}, device="cpu")
    titles = [table.title for table in speed_tables(records + row("ops", {"time": 1.0}))]
    assert titles == [
        "A training step on NVIDIA H200",
        "A training step on cpu",
        "Operations of mamba2-130m 16×2048 on NVIDIA H200",
    ]


def test_operations_are_named_by_their_part() -> None:
    values = {"time": 0.25, "floor_compute": 0.02, "floor_memory": 0.051}
    records = row("ops", values, part="scan forward", sweeps=None)
    [table] = speed_tables(records)
    assert table.header == ("", "ms", "floor ms", "× floor")
    assert table.rows == (("scan forward", "0.25", "0.051 memory", "4.90"),)


def test_the_tables_fit_a_terminal_with_names_on_one_line() -> None:
    records = row("train", FULL, model="explicit-mamba2-1.3b", sweeps=None, phantom=None)
    records += row("train", FULL | {"time": 3491.0, "goal": 3491.0}, sweeps=24, phantom=4)
    records += row("ops", FULL | {"floor_memory": 151.2}, part="cross entropy with backward")
    for table in speed_tables(records):
        lines = shown(replace(table, title=""))
        assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
        for told in table.rows:
            assert any(line.strip().startswith(f"{told[0]} ") for line in lines)


@pytest.mark.parametrize(
    ("value", "told"), [(123_456.7, "123,457"), (512.34, "512.3"), (0.48741, "0.487"), (0.0, "0")]
)
def test_numbers_have_three_or_four_digits(value: float, told: str) -> None:
    assert cell(value) == told


@pytest.fixture
def drawn() -> Plot:
    found = scaling_curves(curves())
    assert found is not None
    return found


def test_curves_are_the_records(drawn: Plot) -> None:
    panels = [
        (axes.get_title(loc="left"), axes.get_xlabel(), *axes.lines[0].get_data())
        for axes in drawn.figure.axes
    ]
    assert [(title, x) for title, x, *_ in panels] == [
        ("ms a step", "sequences"),
        ("ms a step of as many tokens", "length, tokens"),
        ("ms a step", "sweeps s"),
        ("ms a step", "phantom steps k"),
        ("peak memory, GiB", "sweeps s"),
        ("peak memory, GiB", "phantom steps k"),
    ]
    np.testing.assert_array_equal(panels[0][2:], [[1, 2, 4], [10, 20, 40]])
    np.testing.assert_array_equal(panels[4][2:], [[0, 8, 32], [3, 3, 3]])
    np.testing.assert_array_equal(panels[5][2:], [[1, 2, 3], [3, 6, 9]])
    assert "mamba2-130m on NVIDIA H200;" in drawn.caption


def test_memory_has_one_scale(drawn: Plot) -> None:
    flat, growing = drawn.figure.axes[-2:]
    assert flat.get_ylim() == growing.get_ylim() and flat.get_ylim()[0] == 0


def test_panels_without_records_are_left_out_and_models_are_told_apart() -> None:
    some = [r for r in curves() if "by_batch" in r.name or "by_length" in r.name]
    found = scaling_curves(some + [replace(r, model="llama-130m") for r in some])
    assert found is not None
    assert len(found.figure.axes) == 2
    assert all(len(axes.lines) == 2 for axes in found.figure.axes)
    assert "llama-130m on NVIDIA H200" in found.caption
    assert scaling_curves(row("train", FULL)) is None


def test_the_page_shows_both(tmp_path: object) -> None:
    records = curves() + row("train", FULL)
    path = write_page(str(tmp_path), records, title="Speed")
    page = path.read_text(encoding="utf-8")
    assert "<h2>How fast it is</h2>" in page and "How a training step grows" in page
    assert len(re.findall(r"<b>Table \d+\.</b> A training step", page)) == 6
    assert [each.name for each in figures.draw(records)] == ["scaling"]
