"""Curves: accuracy against length and position, training against the step, residual against sweep.

Each function picks its Records and draws them, or returns None if there are none. Canvas and axes
are `plot.py`. Read next: `maps.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from equilm.record import Record
from equilm.report import plot, select
from equilm.report.plot import End, Plot
from equilm.report.select import Floats, Line, Runs
from equilm.report.style import LIGHT, LINES, POSITION, style

MAX_POINTS = 320
MAX_PANELS = 3
MAX_TOKENS = 48


def accuracy_by_length(records: Iterable[Record]) -> Plot | None:
    """Accuracy against length: a line a model and window, its band from worst to best seed."""
    caption = (
        "Each point is all tokens of one test length, not the last ten; a line that stays at the "
    )
    caption += "top means that the model knows the state to the very end."
    return _by_length(records, _mean_and_band, caption)


def every_seed_by_length(records: Iterable[Record]) -> Plot | None:
    """Accuracy against length: a thin line a seed, and a thick one, their median."""
    caption = "Each point is all tokens of one test length; a thin line is a seed, a thick one the "
    caption += "median of all."
    return _by_length(records, _median_and_seeds, caption)


def _by_length(records: Iterable[Record], draw: Callable[..., float], caption: str) -> Plot | None:
    records = list(records)
    lines = select.lines(records, "accuracy")
    lengths = {length for by_length in lines.values() for length in by_length}
    if len(lengths) < 2:
        return None
    with style():
        figure, [axes] = plot.canvas(height=3.3)
        plot.length_axis(axes, lengths, "length of the sequence, tokens")
        plot.share_axis(axes)
        axes.set_title("tokens right, of all")
        ends = {}
        for line, colour in colours(lines).items():
            end = draw(axes, lines[line], colour, stroke_of(line))
            ends[select.label(line, lines)] = End(end, colour, stroke_of(line))
        plot.label_ends(axes, ends | _draw_guessing(axes, records, lines), height=2.6)
        mark_trained(axes, records)
    return Plot("accuracy", "Accuracy against length", caption, figure)


def _mean_and_band(
    axes: Axes, by_length: Mapping[int, list[Record]], colour: str, stroke: Mapping[str, Any]
) -> float:
    seeds = [[select.number(r) for r in at] for at in by_length.values()]
    mean, low, high = (np.array([f(each) for each in seeds]) for f in (np.mean, min, max))
    axes.plot(list(by_length), mean, **stroke, color=colour, clip_on=False)
    if np.any(low < high):
        axes.fill_between(list(by_length), low, high, color=colour, alpha=0.15, linewidth=0)
    return float(mean[-1])


def _median_and_seeds(
    axes: Axes, by_length: Mapping[int, list[Record]], colour: str, stroke: Mapping[str, Any]
) -> float:
    seeds: dict[int | None, dict[int, float]] = {}
    for length, at in by_length.items():
        for record in at:
            seeds.setdefault(record.seed, {})[length] = select.number(record)
    for one in seeds.values():
        axes.plot(list(one), list(one.values()), color=colour, linewidth=0.9, alpha=0.7)
    median = [float(np.median([select.number(r) for r in at])) for at in by_length.values()]
    axes.plot(list(by_length), median, **stroke, color=colour, clip_on=False)
    return median[-1]


def accuracy_by_position(records: Iterable[Record]) -> Plot | None:
    """Accuracy along a sequence: a line a model and window, at its longest length."""
    records = list(records)
    lines = select.lines(records, "accuracy_by_position")
    if not lines:
        return None
    longest = max(length for by_length in lines.values() for length in by_length)
    with style():
        figure, [axes] = plot.canvas(height=3.0)
        powers = 2.0 ** np.arange(0, np.log2(longest) + 1, 2)
        plot.length_axis(axes, [*powers[powers < longest / 2.5], longest], "position of the token")
        plot.share_axis(axes)
        axes.set_title("tokens right")
        ends = {}
        for line, colour in colours(lines).items():
            right = np.nanmean(select.rows(lines[line][max(lines[line])]), axis=0)
            x, mean = _geometric_bins(right)
            stroke = stroke_of(line) | {"markevery": 0.1}
            axes.plot(x, mean, **stroke, color=colour, clip_on=False)
            ends[select.label(line, lines)] = End(mean[-1], colour, stroke_of(line))
        plot.label_ends(axes, ends | _draw_guessing(axes, records, lines), height=2.3)
        mark_trained(axes, records)
    caption = "The same sequences token by token: where a line falls is how far the model can "
    caption += "carry the state."
    return Plot("position", "Accuracy along the sequence", caption, figure)


def training_curves(records: Iterable[Record]) -> Plot | None:
    """Loss, accuracy and length of the curriculum against the step, one above the other."""
    records = list(records)
    panels = {"loss": ("loss, nats", 2.0), "accuracy": ("tokens right", 1.4)}
    panels["length"] = ("length in training, tokens", 0.8)
    runs = {name: select.training(records, name) for name in panels}
    shown = [name for name in panels if any(len(run) > 1 for run in runs[name].values())]
    if len({select.number(one) for run in runs["length"].values() for one in run}) == 1:
        shown = [name for name in shown if name != "length"]
    if "loss" not in shown and "accuracy" not in shown:
        return None
    ratios = [panels[name][1] for name in shown]
    with style():
        height = 1.1 + sum(ratios)
        figure, grid = plot.canvas(len(shown), height=height, share_x=True, ratios=ratios)
        for axes, name in zip(grid, shown, strict=True):
            axes.set_title(panels[name][0])
            ends = (_draw_stairs if name == "length" else _draw_runs)(axes, runs[name])
            axes.set_ylim(bottom=0)
            if name == "accuracy":
                plot.share_axis(axes)
            if axes is grid[0]:
                plot.label_ends(axes, ends, height=ratios[0])
        grid[-1].set_xlabel("step")
        grid[-1].locator_params(axis="x", integer=True)
    caption = "A line joins the steps that were logged"
    if any(len(run) > MAX_POINTS for name in shown for run in runs[name].values()):
        caption = "A line is the mean of neighbouring steps, its band runs from the least to the "
        caption += "greatest of them"
    if "length" in shown:
        caption += "; where the loss jumps, the sequences have become longer (lowest panel)"
    return Plot("training", "Training", caption + ".", figure)


def residual_curves(records: Iterable[Record]) -> Plot | None:
    """Relative residual against the sweep: a line a token, coloured by its position."""
    groups = select.longest(records, "residual_by_sweep")
    shown = list(groups.items())[:MAX_PANELS]
    if not shown:
        return None
    with style():
        figure, grid = plot.canvas(1, len(shown), height=2.8)
        last = max(record.row or 0 for _, found in shown for record in found)
        for axes, (line, found) in zip(grid, shown, strict=True):
            plot.power_axis(axes)
            for record in found[:: -(-len(found) // MAX_TOKENS)]:
                residual = np.atleast_1d(record.value)
                colour = POSITION((record.row or 0) / max(last, 1))
                sweeps = np.arange(1, residual.size + 1)
                positive = np.where(residual > 0, residual, np.nan)
                axes.plot(sweeps, positive, color=colour, linewidth=1.1)
            axes.set_title(select.label(line, groups))
            axes.set_xlabel("sweep")
            axes.locator_params(axis="x", integer=True)
        grid[0].set_ylabel("relative residual")
        if last > 0:
            colours = ScalarMappable(Normalize(0, last), POSITION)
            plot.colour_bar(figure, colours, grid, "position of the token")
    caption = (
        "Each line is a token, all tokens solved at once: it falls for good when those before "
    )
    caption += "it have settled, and is flat from where it settles." + plot.omitted(shown, groups)
    return Plot("residual", "Residual against sweep", caption, figure)


def stroke_of(line: Line) -> dict[str, Any]:
    """How the line of a mode is drawn."""
    if line.mode == "simultaneous":
        return {"linestyle": (0, (1, 2)), "marker": "^", "markersize": 5}
    if line.mode.startswith("window"):
        return {"linestyle": (0, (4, 2)), "marker": "s", "markersize": 7, "markerfacecolor": "none"}
    return {"linestyle": "-", "marker": "o"}


def colours(lines: Iterable[Line]) -> dict[Line, str]:
    """One colour for all that differ in their mode alone."""
    subjects = {line: replace(line, mode="") for line in lines}
    known = dict.fromkeys(subjects.values())
    of = {subject: LINES[index % len(LINES)] for index, subject in enumerate(known)}
    return {line: of[subject] for line, subject in subjects.items()}


def _draw_guessing(axes: Axes, records: Sequence[Record], lines: Iterable[Line]) -> dict[str, End]:
    stroke: dict[str, Any] = {"linestyle": (0, (3, 3)), "linewidth": 0.9}
    tasks = list(dict.fromkeys(line.task for line in lines))
    ends = {}
    for task in tasks:
        share = select.guessing(records, task)
        if share is not None:
            axes.axhline(share, color=LIGHT["muted"], **stroke)
            name = f"guessing, {task}" if len(tasks) > 1 else "guessing"
            ends[name] = End(share, LIGHT["muted"], stroke)
    return ends


def mark_trained(axes: Axes, records: Sequence[Record]) -> None:
    """Draw where the sequences of training ended, if that is told and in sight."""
    length = select.longest_trained(records)
    low, high = axes.get_xlim()
    if length is not None and low < length < high:
        axes.axvline(length, color=LIGHT["muted"], linewidth=0.6)
        axes.annotate(
            f"trained up to {length:,} tokens",
            (length, 0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(4, 4),
            textcoords="offset points",
            color=LIGHT["muted"],
            size="small",
            # Over the lines, on paper of its own.
            zorder=4,
            bbox={"facecolor": LIGHT["paper"], "edgecolor": "none", "alpha": 0.85, "pad": 1},
        )


def _draw_runs(axes: Axes, runs: Runs) -> dict[str, End]:
    """Draw a curve and its band a run, coloured by model; returns where each model's ends."""
    ends = {}
    for model, colour, x, y in _finite(runs):
        width = -(-y.size // MAX_POINTS)
        low, high = (plot.blocks(y, width, reduce) for reduce in (np.ma.min, np.ma.max))
        x, y = plot.blocks(x, width), plot.blocks(y, width)
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(x, y, color=colour)
        ends[model] = End(float(y[-1]), colour, {})
    return ends


def _draw_stairs(axes: Axes, runs: Runs) -> dict[str, End]:
    """Draw a stair a run, each wider than the one above it, since models often climb together."""
    ends: dict[str, End] = {}
    for model, colour, x, y in _finite(runs):
        width, depth = 1.2 + 1.6 * len(ends), 2 - 0.1 * len(ends)
        axes.step(
            x, y, where="post", color=colour, linewidth=width, zorder=depth, solid_capstyle="butt"
        )
        ends[model] = End(float(y[-1]), colour, {})
    return ends


def _finite(runs: Runs) -> Iterator[tuple[str, str, Floats, Floats]]:
    """Model, colour, steps and values of each run, without what is not a finite number."""
    models = list(dict.fromkeys(model for model, _ in runs))
    for (model, _), run in runs.items():
        x = np.array([record.step for record in run], dtype=np.float64)
        y = np.array([select.number(record) for record in run])
        kept = np.isfinite(y)
        if kept.any():
            yield model or "model", LINES[models.index(model) % len(LINES)], x[kept], y[kept]


def _geometric_bins(series: Floats) -> tuple[Floats, Floats]:
    """Means over positions 1, 2, 3 ... put together where they are close on a log axis."""
    edges = np.unique(np.geomspace(1, series.size + 1, MAX_POINTS // 2).round()).astype(int)
    spans = list(pairwise(edges))
    at = np.array([(first * (after - 1)) ** 0.5 for first, after in spans])
    return at, np.array([np.mean(series[first - 1 : after - 1]) for first, after in spans])
