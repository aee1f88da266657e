"""Maps: the work of each token along its sequence, and Jacobians side by side.

Each function picks its Records and draws them, or returns None if there are none. Canvas and axes
are `plot.py`. Read next: `figures.py`.
"""

from collections.abc import Iterable

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.ticker import StrMethodFormatter

from equilm.record import Record
from equilm.report import plot, select
from equilm.report.plot import Plot
from equilm.report.select import Floats
from equilm.report.style import EFFORT, SIGNED, style

MAX_COLUMNS = 320
MAX_PANELS = 3
JACOBIANS = {
    "jacobian_autograd": "autograd through the solve",
    "jacobian_theorem1": "Theorem 1",
    "jacobian_explicit": "explicit",
}


def effort_map(records: Iterable[Record]) -> Plot | None:
    """Evaluations of each token: a row a sequence, a panel a window, at its longest length."""
    found = select.longest(records, "evaluations")
    maps = {line: select.rows(series) for line, series in found.items()}
    maps = {line: each for line, each in maps.items() if np.nanmax(each) > 1}
    shown = list(maps.items())[:MAX_PANELS]
    if not shown:
        return None
    width = 1
    with style():
        figure, grid = plot.canvas(len(shown), height=0.4 + 1.25 * len(shown))
        for axes, (line, effort) in zip(grid, shown, strict=True):
            rows, length = effort.shape
            width = -(-length // MAX_COLUMNS)
            image = axes.imshow(
                plot.blocks(effort, width),
                cmap=EFFORT,
                norm=Normalize(0, float(np.nanquantile(effort, 0.995))),
                aspect="auto",
                interpolation="none",
                extent=(0.5, length + 0.5, rows + 0.5, 0.5),
            )
            plot.frame(axes)
            axes.set_yticks([])
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.set_title(select.label(line, maps))
            plot.colour_bar(figure, image, axes, "evaluations")
        grid[-1].set_xlabel("position of the token")
    caption = "Each row is a sequence, and the stronger the colour, the more evaluations the "
    caption += "token took" + (f" (mean of {width} neighbours)." if width > 1 else ".")
    caption += plot.omitted(shown, maps)
    return Plot("effort", "Where the work goes", caption, figure)


def jacobian_maps(records: Iterable[Record]) -> Plot | None:
    """The Jacobian of a state with respect to the one before, side by side on one scale."""
    records = list(records)
    matrices: dict[tuple[str, str], Floats] = {}
    for name in JACOBIANS:
        for line, series in select.longest(records, name).items():
            matrices.setdefault((name, line.model), select.rows(series))
    if not matrices:
        return None
    columns = min(len(matrices), 3)
    rows = -(-len(matrices) // columns)
    limit = max(map(_off_diagonal, matrices.values())) or 1.0
    with style():
        figure, grid = plot.canvas(rows, columns, height=2.6 * rows)
        for axes, ((name, model), matrix) in zip(grid, matrices.items(), strict=False):
            image = axes.imshow(
                matrix, cmap=SIGNED, norm=Normalize(-limit, limit), interpolation="none"
            )
            plot.frame(axes)
            axes.set_xticks([])
            axes.set_yticks([])
            alone = sum(kind == name for kind, _ in matrices) == 1
            axes.set_title(JACOBIANS[name] if alone else f"{JACOBIANS[name]}, {model}")
            exact = matrices.get(("jacobian_autograd", model))
            if name == "jacobian_theorem1" and exact is not None and exact.shape == matrix.shape:
                axes.set_xlabel(f"differs by at most {np.nanmax(np.abs(exact - matrix)):.0e}")
        for axes in grid[len(matrices) :]:
            axes.set_visible(False)
        plot.colour_bar(figure, image, grid, "", shrink=0.8)
    caption = "How each number of the next state (rows) depends on each of the last (columns). The "
    caption += "scale is that of the entries beside the diagonal; the diagonal itself lies off it: "
    caption += "; ".join(
        f"{JACOBIANS[name]}, {_diagonal(matrix):.2g} on it (median), "
        f"{_off_diagonal(matrix):.1g} beside it (99% are less)"
        for (name, _), matrix in matrices.items()
    )
    caption += ". A linear scan has nothing beside its diagonal; what an implicit layer has there "
    caption += "lets one number of the state act on another."
    return Plot("jacobian", "Jacobian of the state map", caption, figure)


def _diagonal(matrix: Floats) -> float:
    """How large the entries on the diagonal are."""
    return float(np.nanmedian(np.abs(np.diagonal(matrix))))


def _off_diagonal(matrix: Floats) -> float:
    """How large the entries beside the diagonal are, but for the largest hundredth."""
    beside = np.abs(matrix)[np.eye(*matrix.shape) == 0]
    return float(np.nanquantile(beside, 0.99)) if beside.size else 0.0
