"""Lockstep against batching by sweep: a table and a figure from the Records of `equilm traffic`.

Read next: `page.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from equilm.record import Record
from equilm.report import plot, select
from equilm.report.plot import Plot
from equilm.report.style import LINES, style
from equilm.report.tables import MISSING, Table

PREFIX = "traffic_"
ENGINES = {
    "lockstep": "in lockstep",
    "sweep": "by sweep",
    "previous": "by sweep, warm",
}
DRAWN = {"lockstep": LINES[1], "sweep": LINES[0]}


COLUMNS = {"gap_p50": "wait", "gap_p99": "p99", "evaluations": "evals"}
NOTE = (
    "Measured while more requests wait than can be answered. Ratio: to lockstep. Wait: "
    "milliseconds between two tokens of a request, the median and the 99th percentile. Evals: "
    "evaluations that a token needed. Use: the share of the evaluations made that somebody needed. "
    "Warm: solves begin at the answer to the token before, if it is near."
)


class Key(NamedTuple):
    """What was asked of whom, and how many at once."""

    model: str
    task: str
    device: str
    slots: int


# By engine and name of the value.
Values = Mapping[tuple[str, str], float]


def traffic_tables(records: Iterable[Record]) -> list[Table]:
    """A table a model, task and device: a row a number of slots and engine."""
    cases: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for key, values in _found(records).items():
        base = values.get(("lockstep", "speed"))
        for engine, name in ENGINES.items():
            if (engine, "speed") not in values:
                continue
            speed = values[engine, "speed"]
            ratio = MISSING if base is None else f"{speed / base:.2f}"
            rest = [f"{values[engine, one]:.1f}" for one in COLUMNS]
            rest.append(f"{100 * values[engine, 'use']:.0f}%")
            row = (f"{key.slots} {name}", f"{speed:,.0f}", ratio, *rest)
            cases.setdefault(key[:3], []).append(row)
    header = ("", "tokens/s", "ratio", *COLUMNS.values(), "use")
    return [
        Table(f"{case[0]}, {case[1]}, on {case[2]}", header, tuple(rows), NOTE)
        for case, rows in cases.items()
    ]


def traffic_curves(records: Iterable[Record]) -> Plot | None:
    """Speed and waiting time against slots: a row of panels a model and task."""
    found = _found(records)
    cases = list(dict.fromkeys(key[:3] for key in found))
    cases = [case for case in cases if sum(key[:3] == case for key in found) > 1][:4]
    if not cases:
        return None
    with style():
        figure, grid = plot.canvas(len(cases), 2, height=0.4 + 2.2 * len(cases))
        for row, case in enumerate(cases):
            here = {key.slots: values for key, values in found.items() if key[:3] == case}
            _draw(grid[2 * row : 2 * row + 2], dict(sorted(here.items())), f"{case[0]}, {case[1]}")
        grid[0].legend(frameon=False, labelcolor="linecolor")
    caption = (
        "Requests of random length, more than there are slots. In lockstep everybody waits for the "
        "token that takes the most evaluations; by sweep whoever is done moves on. Between two "
        "tokens: the median and, dashed, the 99th percentile."
    )
    return Plot("traffic", "Answering many at once", caption, figure)


def _draw(grid: Sequence[Axes], here: Mapping[int, Values], title: str) -> None:
    speed, gap = grid
    for engine, colour in DRAWN.items():
        slots = [one for one, values in here.items() if (engine, "speed") in values]
        each = {
            value: [here[one][engine, value] for one in slots]
            for value in ("speed", "gap_p50", "gap_p99")
        }
        name = ENGINES[engine]
        speed.plot(slots, each["speed"], "o-", label=name, color=colour, clip_on=False)
        gap.plot(slots, each["gap_p50"], "o-", color=colour, clip_on=False)
        gap.plot(slots, each["gap_p99"], "--", color=colour, clip_on=False)
    speed.set_title(title)
    for axes, words in ((speed, "tokens a second"), (gap, "ms between two tokens")):
        axes.set_ylabel(words)
        axes.set_ylim(bottom=0)
        plot.length_axis(axes, list(here), "requests at once")


def _found(records: Iterable[Record]) -> dict[Key, dict[tuple[str, str], float]]:
    found: dict[Key, dict[tuple[str, str], float]] = {}
    for record in records:
        if record.name.startswith(PREFIX):
            engine, value = record.name.removeprefix(PREFIX).split("_", 1)
            key = Key(record.model, record.task, record.device, record.batch or 1)
            found.setdefault(key, {})[engine, value] = select.number(record)
    return found
