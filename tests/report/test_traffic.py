"""Records of traffic become a table a case, and one figure with a row of panels a case."""

import numpy as np

from equilm.record import Record
from equilm.report.traffic import traffic_curves, traffic_tables

VALUES = {"gap_p50": 3.0, "gap_p99": 9.0, "evaluations": 7.0, "use": 0.5, "same": 1.0}


def asked(model: str, speeds: dict[tuple[int, str], float]) -> list[Record]:
    return [
        Record(
            name=f"traffic_{policy}_{name}",
            value=value,
            unit="1",
            model=model,
            task="tolerance 0.01",
            device="cpu",
            batch=slots,
        )
        for (slots, policy), speed in speeds.items()
        for name, value in {**VALUES, "speed": speed}.items()
    ]


BOTH = {(1, "lockstep"): 10.0, (1, "sweep"): 11.0, (8, "lockstep"): 20.0, (8, "sweep"): 50.0}


def test_a_table_says_how_much_faster() -> None:
    first, second = traffic_tables([*asked("a", BOTH), *asked("b", {(4, "sweep"): 5.0})])
    assert first.title == "a, tolerance 0.01, on cpu"
    assert [row[:3] for row in first.rows] == [
        ("1 in lockstep", "10", "1.00"),
        ("1 by sweep", "11", "1.10"),
        ("8 in lockstep", "20", "1.00"),
        ("8 by sweep", "50", "2.50"),
    ]
    assert first.rows[0][3:] == ("3.0", "9.0", "7.0", "50%")
    assert [row[:3] for row in second.rows] == [("4 by sweep", "5", "—")]


def test_what_was_measured_again_counts_once() -> None:
    again = asked("a", {(8, "sweep"): 60.0})
    (table,) = traffic_tables([*asked("a", BOTH), *again])
    assert len(table.rows) == 4 and table.rows[3][1] == "60"


def test_a_figure_has_two_panels_a_case() -> None:
    drawn = traffic_curves([*asked("a", BOTH), *asked("b", BOTH)])
    assert drawn is not None
    speed, gap, *_ = drawn.figure.axes
    assert len(drawn.figure.axes) == 4
    assert [np.asarray(line.get_ydata()).tolist() for line in speed.lines] == [
        [10.0, 20.0],
        [11.0, 50.0],
    ]
    assert [np.asarray(line.get_ydata()).tolist() for line in gap.lines] == [
        [3.0, 3.0],
        [9.0, 9.0],
    ] * 2
    # One number of slots is no curve.
    assert traffic_curves(asked("a", {(4, "sweep"): 5.0})) is None
    assert traffic_curves([]) is None and traffic_tables([]) == []
