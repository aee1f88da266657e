"""How mixers of one width grow with the length, and how fast models of one size generate.

Read next: `page.py`.
"""

from collections.abc import Iterable, Mapping

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from equilm.record import Record
from equilm.report import plot
from equilm.report.plot import Plot
from equilm.report.speed import Measured, measured
from equilm.report.style import LINES, style

PASSES = ("forward", "with backward")
Lines = Mapping[str, Mapping[int, float]]


def mixer_curves(records: Iterable[Record]) -> Plot | None:
    """Time of mixers by the length, without and with gradients; tokens a second by the batch."""
    rows = measured(records)
    mixing = [row for row in rows if row.what == "mixing"]
    generated = [row for row in rows if row.what == "generation"]
    if not mixing:
        return None
    parts = dict.fromkeys(_split(row)[0] for row in mixing)
    colours = dict(zip(parts, LINES * len(parts), strict=False))
    with style():
        figure, grid = plot.canvas(1, 3 if generated else 2, height=2.9)
        for axes, passes in zip(grid, PASSES, strict=False):
            lines = {part: _by_length(mixing, part, passes) for part in parts}
            _draw(axes, lines, [colours[part] for part in parts])
            axes.set_title(f"ms {passes}")
            lengths = {row.record.length or 1 for row in mixing}
            plot.length_axis(axes, sorted(lengths, reverse=True)[::2], "length, tokens")
        low = min(axes.get_ylim()[0] for axes in grid[:2])
        high = max(axes.get_ylim()[1] for axes in grid[:2])
        for axes in grid[:2]:
            axes.set_ylim(low, high)
        handles, names = grid[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=len(names), frameon=False)
        if generated:
            _generation(grid[2], generated)
    return Plot("mixers-speed", "How fast mixers are", _caption(mixing, generated), figure)


def _generation(axes: Axes, rows: list[Measured]) -> None:
    lines: dict[str, dict[int, float]] = {}
    for row in rows:
        name = row.record.model.removeprefix("explicit-")
        lines.setdefault(name, {})[row.record.batch or 1] = row.values["speed"]
    # The colour of each model's mixer, in the order of its panel.
    _draw(axes, lines, LINES)
    axes.set_title("generated tokens a second")
    batches = max(lines.values(), key=len)
    plot.length_axis(axes, sorted(batches, reverse=True)[::2], "sequences")
    axes.legend(frameon=False, loc="lower right", handlelength=1.0)


def _draw(axes: Axes, lines: Lines, colours: Iterable[str]) -> None:
    for (name, line), colour in zip(lines.items(), colours, strict=False):
        points = dict(sorted(line.items()))
        axes.plot(list(points), list(points.values()), "o-", color=colour, label=name)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def _by_length(rows: Iterable[Measured], part: str, passes: str) -> dict[int, float]:
    return {
        row.record.length or 1: row.values["time"] for row in rows if _split(row) == (part, passes)
    }


def _split(row: Measured) -> tuple[str, str]:
    """The operation and the passes that a part names."""
    passes = next(passes for passes in PASSES if row.record.part.endswith(passes))
    return row.record.part.removesuffix(passes).rstrip(), passes


def _caption(mixing: list[Measured], generated: list[Measured]) -> str:
    one = mixing[0].record
    tokens = (one.batch or 1) * (one.length or 1)
    words = f"{tokens:,} tokens of {one.model} on {one.device} in {one.precision}, by the length."
    if generated:
        words += f" At the right explicit models of one size, {generated[0].record.part}."
    return words
