"""State tracking: depth against length, hardness, sweeps, tolerance, trajectories, questions.

Each function picks its Records and draws them, or returns None if there are none. They are the
figures of arXiv 2502.07827; `equilm reproduce` trains for them. Read next: `figures.py`.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from equilm.record import Record
from equilm.report import plot, select
from equilm.report.plot import End, Plot
from equilm.report.select import Floats
from equilm.report.style import EFFORT, LIGHT, LINES, POSITION, style
from equilm.report.tables import Table

ENOUGH = 0.9  # of the last ten tokens right: a length is held


def named(records: Iterable[Record], name: str) -> dict[str, list[Record]]:
    """The Records of one name by model, in the order of their coming."""
    found: dict[str, list[Record]] = {}
    for record in records:
        if record.name == name:
            found.setdefault(record.model, []).append(record)
    return found


def layers_needed(records: Iterable[Record]) -> Plot | None:
    """The fewest layers that hold a length they were trained on, by median seed."""
    records = list(records)
    best: dict[bool, dict[int, dict[int, list[float]]]] = {False: {}, True: {}}
    for record in records:
        if record.name == "accuracy_last10" and record.part == "depth" and record.row is not None:
            at = best[record.window is not None].setdefault(record.length or 0, {})
            at.setdefault(record.row, []).append(select.number(record))
    if not any(best.values()):
        return None
    deepest = max(row for kind in best.values() for at in kind.values() for row in at)
    lengths = {length for kind in best.values() for length in kind}
    with style():
        figure, [axes] = plot.canvas(height=2.8)
        plot.length_axis(axes, lengths, "length in training and test, tokens")
        axes.set_yscale("log", base=2)
        ticks = (2.0 ** np.arange(0, np.log2(deepest) + 1.5)).tolist()
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda y, _: f"{y:.0f}" if y <= deepest else "more")
        )
        axes.set_title(f"layers needed for {ENOUGH:.0%} of the last ten tokens")
        kinds = {False: ("explicit", LINES[1]), True: ("implicit", LINES[0])}
        for implicit, (name, colour) in kinds.items():
            needed = _fewest(best[implicit], 2 * deepest)
            if needed:
                x, y = list(needed), list(needed.values())
                axes.plot(x, y, "o-", color=colour, label=name, clip_on=False)
        axes.set_ylim(0.85, 2.2 * deepest)
        axes.legend(frameon=False, loc="upper left")
    caption = "Of the models trained on a length, the one with the fewest layers that gets the end "
    caption += "of the sequence right; above the top line none does."
    return Plot("layers", "Layers needed against length", caption, figure)


def _fewest(by_length: Mapping[int, Mapping[int, Sequence[float]]], none: int) -> dict[int, int]:
    return {
        length: min(
            (layers for layers, seeds in at.items() if np.median(seeds) >= ENOUGH), default=none
        )
        for length, at in sorted(by_length.items())
    }


def hard_share_map(records: Iterable[Record]) -> Plot | None:
    """Accuracy at a share of hard tokens in the test, by the share in training."""
    trained: dict[int, list[list[float]]] = {}
    tested: list[float] = []
    for record in records:
        if record.name == "hard_shares" and record.part == "hard" and not tested:
            tested = list(np.atleast_1d(record.value))
        if record.name == "accuracy_by_hard_share" and record.part == "hard":
            trained.setdefault(record.row or 0, []).append(list(np.atleast_1d(record.value)))
    if not trained or not tested:
        return None
    order = sorted(trained)
    # Of the seeds the median, as variance between runs is large.
    grid_MN: Floats = np.array([np.median(trained[row], axis=0) for row in order])
    with style():
        figure, [axes] = plot.canvas(height=3.2)
        image = axes.imshow(grid_MN, cmap=EFFORT, norm=Normalize(0, 1), aspect="auto")
        plot.frame(axes)
        for (i, j), value in np.ndenumerate(grid_MN):
            axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center")
        axes.set_xticks(range(len(tested)), [f"{share:.0%}" for share in tested])
        axes.set_yticks(range(len(order)), [f"{row}%" for row in order])
        axes.set_xlabel("hard tokens in the test")
        axes.set_ylabel("hard tokens in training")
        axes.set_title("percent of tokens right")
        plot.colour_bar(figure, image, axes, "")
    caption = "A row is a model trained on sequences of which a share of the tokens changes the "
    caption += "state, a column the share in its test."
    return Plot("hardness", "Hard tokens in training and test", caption, figure)


def training_sweeps(records: Iterable[Record]) -> Plot | None:
    """Test accuracy against the sweeps in training: a line a model, its band over seeds."""
    found = [r for r in records if r.name == "accuracy" and r.part == "sweeps"]
    if not found:
        return None
    with style():
        figure, [axes] = plot.canvas(height=2.8)
        plot.length_axis(axes, {r.sweeps or 1 for r in found}, "evaluations of a token in training")
        plot.share_axis(axes)
        axes.set_title("tokens right in the test")
        ends = {}
        for colour, model in zip(LINES, dict.fromkeys(r.model for r in found), strict=False):
            at: dict[int, list[float]] = {}
            for record in sorted(found, key=lambda r: r.sweeps or 0):
                if record.model == model:
                    at.setdefault(record.sweeps or 0, []).append(select.number(record))
            y = _band(axes, list(at), list(at.values()), colour)
            ends[model] = End(y, colour, {"marker": "o"})
        plot.label_ends(axes, ends, height=2.1)
    caption = "Each point is a model trained with that many evaluations from the first step to the "
    caption += "last, and tested where it had converged, or for the unrolled ones with as many."
    return Plot("sweeps", "Sweeps in training", caption, figure)


def _band(axes: Axes, x: Sequence[float], seeds: Sequence[Sequence[float]], colour: str) -> float:
    """Draw the median and the band of all seeds; return where the line ends."""
    middle = [float(np.median(each)) for each in seeds]
    axes.plot(x, middle, "o-", color=colour, clip_on=False)
    axes.fill_between(
        x, [min(s) for s in seeds], [max(s) for s in seeds], color=colour, alpha=0.15, linewidth=0
    )
    return middle[-1]


def effort_by_hardness(records: Iterable[Record]) -> Plot | None:
    """Evaluations a token against the share of hard tokens: all, easy and hard ones."""
    records = list(records)
    shares = named(records, "hard_shares")
    kinds = {"": "all", "_hard": "hard", "_easy": "easy"}
    found = {
        words: named(records, f"evaluations{kind}_by_hard_share") for kind, words in kinds.items()
    }
    if not shares or not any(found.values()):
        return None
    with style():
        figure, [axes] = plot.canvas(height=2.8)
        axes.set_title("evaluations a token")
        axes.set_xlabel("hard tokens in the test")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
        ends = {}
        for colour, (words, by_model) in zip(LINES, found.items(), strict=False):
            for model, told in by_model.items():
                x = list(np.atleast_1d(shares[model][0].value))
                seeds = np.stack([np.atleast_1d(r.value) for r in told], axis=1).tolist()
                end = _band(axes, x, seeds, colour)
                name = f"{words} tokens" if len(by_model) == 1 else f"{words} tokens, {model}"
                ends[name] = End(end, colour, {"marker": "o"})
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        plot.label_ends(axes, ends, height=2.1)
    caption = "Token by token: the identity is easy, for it leaves the state as it is."
    return Plot("hard-effort", "Work by hardness", caption, figure)


def tolerance_curves(records: Iterable[Record]) -> Plot | None:
    """Accuracy and evaluations a token against the tolerance, one above the other."""
    records = list(records)
    at = named(records, "tolerances")
    panels = {"accuracy_by_tolerance": "tokens right", "evaluations_by_tolerance": "evaluations"}
    if not at:
        return None
    with style():
        figure, grid = plot.canvas(2, height=3.8, share_x=True)
        for axes, (name, title) in zip(grid, panels.items(), strict=True):
            axes.set_title(title)
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
            ends = {}
            for colour, (model, told) in zip(LINES, named(records, name).items(), strict=False):
                x = list(np.atleast_1d(at[model][0].value))
                seeds = np.stack([np.atleast_1d(r.value) for r in told], axis=1).tolist()
                ends[model] = End(_band(axes, x, seeds, colour), colour, {"marker": "o"})
                axes.xaxis.set_major_locator(FixedLocator(x))
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            if name.startswith("accuracy"):
                plot.share_axis(axes)
            else:
                axes.set_ylim(bottom=0)
            plot.label_ends(axes, ends, height=1.4)
        grid[-1].set_xlabel("tolerance of the solve")
    caption = "A token is solved when one more evaluation changes it by less than the tolerance: "
    caption += "the looser it is, the less work, until answers suffer."
    return Plot("tolerance", "Tolerance", caption, figure)


def trajectories(records: Iterable[Record]) -> Plot | None:
    """How each token moves to its fixed point in both modes, on one plane, of one seed."""
    found: dict[tuple[bool, int], dict[str, Floats]] = {}
    first: int | None = None
    for r in records:
        if r.name in ("trajectory_x", "trajectory_y"):
            first = r.seed if first is None else first
            if r.seed == first:
                series = found.setdefault((r.window == 1, r.row or 0), {})
                series[r.name[-1]] = np.atleast_1d(r.value)
    if not found:
        return None
    last = max(row for _, row in found) or 1
    with style():
        figure, grid = plot.canvas(1, 2, height=3.4)
        for (sequential, row), path in found.items():
            axes, colour = grid[int(sequential)], POSITION(row / last)
            axes.plot(path["x"], path["y"], ".-", color=colour, linewidth=0.8, markersize=2.5)
            for both in grid:
                both.plot(
                    path["x"][-1],
                    path["y"][-1],
                    "o" if sequential else "x",
                    color=LIGHT["ink"],
                    markersize=6,
                    markerfacecolor="none",
                )
        for axes, title in zip(grid, ("all tokens at once", "token by token"), strict=True):
            axes.set_title(title)
            axes.grid(visible=False)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel("first principal direction")
        grid[0].set_ylabel("second")
        limits = [grid[0].get_xlim() + grid[1].get_xlim(), grid[0].get_ylim() + grid[1].get_ylim()]
        for axes in grid:
            axes.set_xlim(min(limits[0]), max(limits[0]))
            axes.set_ylim(min(limits[1]), max(limits[1]))
    caption = "A line is a token, early ones blue and late ones orange; it begins at zero. Circles "
    caption += "are the ends token by token, crosses those of all at once: they are the same."
    return Plot("duality", "Two modes, one fixed point", caption, figure)


def duality_table(records: Iterable[Record]) -> Table | None:
    """Perplexity in both modes, and how far apart they end: a row a seed."""
    told: dict[int | None, dict[str, str]] = {}
    for r in records:
        at = told.setdefault(r.seed, {})
        if r.name == "perplexity":
            at["token by token" if r.window == 1 else "all at once"] = f"{r.value:.6f}"
        if r.name in ("perplexity_difference", "modes_apart"):
            at[r.name] = f"{r.value:.1e}"
    header = ("token by token", "all at once", "perplexity_difference", "modes_apart")
    rows = tuple(
        (str(seed), *(at[name] for name in header))
        for seed, at in told.items()
        if set(header) <= set(at)
    )
    if not rows:
        return None
    names = ("seed", "token by token", "all at once", "difference", "apart in z, relative")
    return Table("Perplexity in both modes", names, rows)
