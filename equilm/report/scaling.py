"""How a training step grows: time and memory against batch, length, sweeps and phantom steps.

Read next: `page.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from equilm.record import Record
from equilm.report import plot
from equilm.report.plot import Plot
from equilm.report.speed import Measured, measured
from equilm.report.style import LINES, style

ACROSS, HEIGHT = 3, 2.1  # panels in a row, and inches of one


class Panel(NamedTuple):
    """What changes along x, and what is shown of it."""

    what: str
    field: str  # of a Record
    value: str
    title: str
    x_name: str


PANELS = (
    Panel("by_batch", "batch", "time", "ms a step", "sequences"),
    Panel("by_length", "length", "time", "ms a step of as many tokens", "length, tokens"),
    Panel("by_sweeps", "sweeps", "time", "ms a step", "sweeps s"),
    Panel("by_phantom", "phantom", "time", "ms a step", "phantom steps k"),
    Panel("by_sweeps", "sweeps", "memory", "peak memory, GiB", "sweeps s"),
    Panel("by_phantom", "phantom", "memory", "peak memory, GiB", "phantom steps k"),
)


def scaling_curves(records: Iterable[Record]) -> Plot | None:
    """Time and peak memory of a training step: a panel a quantity, a line a model and device."""
    lines: dict[str, list[Measured]] = {}
    for row in measured(records):
        lines.setdefault(f"{row.model} on {row.record.device}", []).append(row)
    shown = [panel for panel in PANELS if any(_points(panel, rows) for rows in lines.values())]
    if not shown:
        return None
    lines = {name: rows for name, rows in lines.items() if any(_points(p, rows) for p in shown)}
    columns = min(ACROSS, len(shown))
    rows_of_panels = -(-len(shown) // columns)
    with style():
        figure, grid = plot.canvas(rows_of_panels, columns, height=0.3 + HEIGHT * rows_of_panels)
        for axes, panel in zip(grid, shown, strict=False):
            _draw(axes, panel, lines)
        for axes in grid[len(shown) :]:
            axes.set_visible(False)
        if len(lines) > 1:
            handles, names = grid[0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside upper left", ncols=len(names), frameon=False)
        _share_limits([axes for axes, p in zip(grid, shown, strict=False) if p.value == "memory"])
    return Plot("scaling", "How a training step grows", _caption(lines), figure)


def _draw(axes: Axes, panel: Panel, lines: Mapping[str, Sequence[Measured]]) -> None:
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_name)
    for (name, rows), colour in zip(lines.items(), cycle(LINES), strict=False):
        points = _points(panel, rows)
        axes.plot(
            list(points), list(points.values()), "o-", color=colour, label=name, clip_on=False
        )
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    if panel.field == "length":
        lengths = {x for rows in lines.values() for x in _points(panel, rows)}
        plot.length_axis(axes, sorted(lengths, reverse=True)[::2], panel.x_name)
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 4, 8, 10]))


def _share_limits(grid: Sequence[Axes]) -> None:
    """What is flat and what grows is to be seen on one scale."""
    top = max((axes.get_ylim()[1] for axes in grid), default=0.0)
    for axes in grid:
        axes.set_ylim(0, top)


def _points(panel: Panel, rows: Iterable[Measured]) -> dict[int, float]:
    found = {
        getattr(row.record, panel.field): row.values[panel.value]
        for row in rows
        if row.what == panel.what and panel.value in row.values
    }
    return dict(sorted(found.items()))


def _caption(lines: Iterable[str]) -> str:
    return (
        f"Forward, loss and backward pass of {' and '.join(lines)}; one quantity is changed at a "
        "time. Memory has one scale, along the sweeps and along the phantom steps."
    )
