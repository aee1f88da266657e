"""A figure with its words, and the few things every figure needs: canvas, axes, end labels.

Knows nothing of Records. Nothing touches matplotlib's global state: no display is opened, and
settings stay what they were. How it looks is `style.py`. Read next: `figures.py`.
"""

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from equilm.report.select import Floats
from equilm.report.style import FONT_POINTS, LIGHT, WIDTH_INCHES, style

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}
_ROOT = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


@dataclass(frozen=True)
class Plot:
    """A drawn figure with the words that belong to it.

    Args:
        name: one word, for file names and links.
        title: what is shown, a few words.
        caption: how to read it, one sentence.
        figure: the drawing.
    """

    name: str
    title: str
    caption: str
    figure: Figure

    def svg(self) -> str:
        """The drawing as one <svg> element that scales, named for those who cannot see it."""
        buffer = io.StringIO()
        with style():
            self.figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
        drawing = buffer.getvalue()
        view_box = re.search(r'viewBox="[^"]*"', drawing)
        assert view_box is not None
        body = drawing[drawing.index(">", view_box.end()) + 1 :]
        body = _own_ids(body, self.name)
        title, caption = f"{self.name}-title", f"{self.name}-caption"
        return (
            f'{_ROOT} {view_box[0]} role="img" aria-labelledby="{title}"'
            f' aria-describedby="{caption}"><title id="{title}">{escape(self.title)}</title>'
            f'<desc id="{caption}">{escape(self.caption)}</desc>{body}'
        )

    def save(self, path: str | Path) -> None:
        """Write the drawing on white paper, as PNG, SVG or PDF by the suffix of the path."""
        with style():
            self.figure.savefig(path, facecolor=LIGHT["paper"])


def _own_ids(body: str, name: str) -> str:
    """Only ids that are referred to, in the figure's own name: figures share a page."""
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(r'(?<=url\(#)|(?<=href="#)', f"{name}-", body)
    return re.sub(
        r' id="([^"]*)"', lambda id: f' id="{name}-{id[1]}"' if id[1] in used else "", body
    )


def canvas(
    rows: int = 1,
    columns: int = 1,
    *,
    height: float = 3.0,
    share_x: bool = False,
    ratios: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """An empty figure with a grid of axes; call it, and draw, inside `style()`.

    Args:
        rows: of the grid.
        columns: of the grid.
        height: inches; the width is the style's.
        share_x: whether all rows have the same x axis.
        ratios: relative heights of the rows.

    Returns:
        The figure and its axes, row by row.
    """
    figure = Figure(figsize=(WIDTH_INCHES, height))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share_x, height_ratios=ratios)
    return figure, list(grid.flat)


def share_axis(axes: Axes) -> None:
    """Make y a share of tokens, 0 to 100%."""
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f}%"))


def length_axis(axes: Axes, lengths: Iterable[float], name: str) -> None:
    """Make x logarithmic to base 2, with a tick at each length that has room for it."""
    axes.set_xscale("log", base=2)
    ticks: list[float] = []
    for length in sorted(set(lengths), reverse=True):
        if not ticks or length <= ticks[-1] / 1.4:
            ticks.append(length)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda length, _: f"{length:,.0f}"))
    axes.set_xlabel(name)


def power_axis(axes: Axes) -> None:
    """Make y logarithmic to base 10, ticks at whole powers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))


def _power(value: float) -> str:
    return "10" + f"{round(np.log10(value))}".translate(_SUPERSCRIPT)


@dataclass(frozen=True)
class End:
    """Where a line ends, for its name to be written there: y in data, and how it is drawn."""

    y: float
    colour: str
    stroke: Mapping[str, Any]


def label_ends(axes: Axes, ends: Mapping[str, End], *, height: float) -> None:
    """Write each line's name beside its right end, moved just so far that no two overlap.

    Args:
        axes: linear in y, its limits already set.
        ends: the ends of the lines, by name.
        height: of the axes, inches.
    """
    low, high = axes.get_ylim()
    # Of lines that end alike the first is written on top.
    order = sorted(ends, key=lambda name: ends[name].y, reverse=True)[::-1]
    gap = 1.4 * FONT_POINTS / 72 / height
    at: list[float] = []
    for name in order:
        wanted = (np.nan_to_num(ends[name].y) - low) / (high - low)
        at.append(max(wanted, at[-1] + gap) if at else wanted)
    ceiling = 1.0
    for index in reversed(range(len(at))):
        at[index] = min(at[index], ceiling)
        ceiling = at[index] - gap
    for name, y in zip(order, at, strict=True):
        end, place = ends[name], axes.transAxes
        sample = Line2D([1.02, 1.06], [y, y], color=end.colour, transform=place, clip_on=False)
        sample.set(**{**end.stroke, "markevery": [1]})
        axes.add_line(sample)
        axes.text(1.075, y, _shorten(name), color=end.colour, transform=place, va="center")


def _shorten(name: str) -> str:
    """The name, its middle left out where it would take the room of the drawing."""
    return name if len(name) <= 32 else f"{name[:15]}…{name[-16:]}"


def omitted(shown: Sized, found: Sized) -> str:
    """The end of a caption: how many panels there was no room for; "" if none."""
    return f" Shown are {len(shown)} of {len(found)}." if len(shown) < len(found) else ""


def colour_bar(
    figure: Figure,
    colours: ScalarMappable,
    axes: Axes | list[Axes],
    name: str,
    *,
    shrink: float = 1,
) -> None:
    """Explain the colours of some axes with a bar at their right, `shrink` times their height."""
    bar = figure.colorbar(colours, ax=axes, pad=0.015, fraction=0.03, aspect=14, shrink=shrink)
    bar.outline.set_visible(False)
    bar.set_label(name)


def frame(axes: Axes) -> None:
    """A faint line around the axes and no grid, for a map that fades into the paper."""
    axes.grid(visible=False)
    axes.spines[:].set(visible=True, color=LIGHT["faint"])


def blocks(series: Floats, width: int, reduce: Callable[..., Any] = np.ma.mean) -> Floats:
    """Neighbours in the last axis put together, `width` at a time; NaN does not count."""
    padding = [(0, 0)] * (series.ndim - 1) + [(0, -series.shape[-1] % width)]
    padded = np.pad(series, padding, constant_values=np.nan)
    blocked = np.ma.masked_invalid(padded.reshape(*series.shape[:-1], -1, width))
    return np.ma.filled(reduce(blocked, axis=-1), np.nan)
