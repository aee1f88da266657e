"""Language models on text: perplexity by length, position and sweeps, duality, zero-shot scores.

Tables and figures from the Records of `equilm evaluate --text` and `--harness`. Read
`extrapolation.py` next.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from equilm.record import Record
from equilm.report import plot, select
from equilm.report.curves import colours, mark_trained, stroke_of
from equilm.report.plot import End, Plot
from equilm.report.select import Floats, Line
from equilm.report.style import style
from equilm.report.tables import MISSING, Table, percent

HARNESS = "harness_"  # begins the names of what a task of the harness measured
ERROR = "_stderr"  # ends the name of the standard error of such a measure
MAX_PANELS = 3
MAX_TICKS = 6

Points = TypeVar("Points")

_BY_LENGTH = {
    "perplexity": ("Perplexity, by length", "{:,.2f}"),
    "bits_per_byte": ("Bits a byte, by length", "{:.3f}"),
    "same_argmax": ("Guesses that equal the first mode's", "{:.2%}"),
    "perplexity_difference": ("Perplexity less the first mode's", "{:+.4f}"),
}
_NOTE = "A column is the mean over all tokens of the first so many of the same rows of text."


def language_tables(records: Iterable[Record]) -> list[Table]:
    """What the Records are enough for: a row a model and mode, a column a length or sweep."""
    records = list(records)
    found = [_by_length(records, name, *words) for name, words in _BY_LENGTH.items()]
    found += [_by_sweeps(records), _harness(records)]
    return [table for table in found if table is not None]


def perplexity_table(records: Iterable[Record]) -> Table | None:
    """Perplexity alone: a row a model and mode, a column a length."""
    return _by_length(list(records), "perplexity", *_BY_LENGTH["perplexity"])


def perplexity_by_position(records: Iterable[Record]) -> Plot | None:
    """Perplexity along the longest rows of text: a line a model and mode."""
    figure = _along(list(records), "loss_by_position", perplexity_axis)
    if figure is None:
        return None
    caption = "Each point is the mean over a stretch of positions as long as all before it. A "
    caption += "line that rises behind the length of training shows a context that does harm."
    return Plot("perplexity", "Perplexity along the text", caption, figure)


def evaluations_by_position(records: Iterable[Record]) -> Plot | None:
    """Evaluations a token along the longest rows of text: a line a model and mode."""
    figure = _along(list(records), "evaluations_by_position", _evaluations_axis)
    if figure is None:
        return None
    caption = "Each point is the mean over a stretch of positions as long as all before it."
    return Plot("evaluations", "Evaluations along the text", caption, figure)


def perplexity_by_sweeps(records: Iterable[Record]) -> Plot | None:
    """Perplexity against evaluations a token: a panel a text, a line a model and mode."""
    lines = {line: points for line, points in _sweeps(records).items() if len(points) > 1}
    shown = dict(list(by_text(lines).items())[:MAX_PANELS])
    if not shown:
        return None
    with style():
        figure, grid, inner = panels_of(shown)
        for axes, (text, same) in zip(grid, shown.items(), strict=True):
            counts = sorted({count for points in same.values() for count in points})
            plot.length_axis(axes, counts, "evaluations a token" if axes is grid[-1] else "")
            drawn = {}
            for line, colour in colours(same).items():
                nats = np.log([same[line][count] for count in sorted(same[line])])
                axes.plot(sorted(same[line]), nats, **stroke_of(line), color=colour, clip_on=False)
                drawn[select.label(line, same)] = End(float(nats[-1]), colour, stroke_of(line))
            perplexity_axis(axes)
            name_text(axes, text, shown)
            plot.label_ends(axes, drawn, height=inner)
    caption = "The solve is stopped after so many evaluations, whatever its residual. In "
    caption += "simultaneous mode these are sweeps over the whole sequence."
    caption += plot.omitted(shown, by_text(lines))
    return Plot("sweeps", "Perplexity against evaluations", caption, figure)


def by_text(lines: Mapping[Line, Points]) -> dict[str, dict[Line, Points]]:
    """Lines of one text and split together, by its name in words."""
    found: dict[str, dict[Line, Points]] = {}
    for line, points in lines.items():
        name = ", ".join(part for part in (line.task, line.split) if part)
        found.setdefault(name, {})[line] = points
    return found


def longest_texts(
    lines: Mapping[Line, Mapping[int, Sequence[Record]]],
) -> dict[str, dict[Line, Mapping[int, Sequence[Record]]]]:
    """Of lines by length those of the text, or the few texts, with the longest of all."""
    reach = max((length for by_length in lines.values() for length in by_length), default=0)
    far = {t: s for t, s in by_text(lines).items() if any(reach in at for at in s.values())}
    return dict(list(far.items())[:MAX_PANELS])


def name_text(axes: Axes, text: str, panels: Sized) -> None:
    """Write behind the title of a panel which text it is of, if there are several."""
    if len(panels) > 1:
        axes.set_title(f"{axes.get_title('left')}, {text}")


def panels_of(texts: Sized) -> tuple[Figure, list[Axes], float]:
    """Axes above one another, one a text, and the height of each in inches."""
    each = 2.8 if len(texts) == 1 else 2.3
    figure, grid = plot.canvas(len(texts), height=each * len(texts) + 0.2)
    return figure, grid, each - 0.5


def _along(records: Sequence[Record], name: str, finish: Callable[[Axes], None]) -> Figure | None:
    """What was measured in bins of positions: a panel for each of the texts of longest rows."""
    lines = select.lines(records, name)
    panels = longest_texts(lines)
    if not panels:
        return None
    with style():
        figure, grid, inner = panels_of(panels)
        for axes, (text, same) in zip(grid, panels.items(), strict=True):
            drawn, ticks = {}, set()
            for line, colour in colours(same).items():
                edges = _edges(records, line, max(same[line]))
                ticks |= set(edges[1:])
                mean = np.nanmean(select.rows(same[line][max(same[line])]), axis=0)
                x = np.sqrt(np.maximum(edges[:-1], 1) * edges[1:])
                axes.plot(x, mean, **stroke_of(line), color=colour, clip_on=False)
                drawn[select.label(line, same)] = End(mean[-1], colour, stroke_of(line))
            shown = sorted(ticks, reverse=True)[:: -(-len(ticks) // MAX_TICKS)]
            plot.length_axis(axes, shown, "position of the token" if axes is grid[-1] else "")
            finish(axes)
            name_text(axes, text, panels)
            plot.label_ends(axes, drawn, height=inner)
            mark_trained(axes, records)
    return figure


def _evaluations_axis(axes: Axes) -> None:
    axes.set_ylim(bottom=0)
    axes.set_title("evaluations a token")


def _by_length(records: Sequence[Record], name: str, title: str, form: str) -> Table | None:
    lines = select.lines(records, name)
    if not lines:
        return None
    lengths = sorted({length for by_length in lines.values() for length in by_length})
    rows = []
    for line, by_length in lines.items():
        values = [by_length.get(length, []) for length in lengths]
        rows.append((select.label(line, lines), *(_mean(found, form) for found in values)))
    return Table(title, ("model", *(f"{n:,}" for n in lengths)), tuple(rows), _NOTE)


def _by_sweeps(records: Sequence[Record]) -> Table | None:
    lines = _sweeps(records)
    if not lines:
        return None
    counts = sorted({count for points in lines.values() for count in points})
    rows = []
    for line, points in lines.items():
        cells = (f"{points[n]:,.2f}" if n in points else MISSING for n in counts)
        rows.append((select.label(line, lines), *cells))
    header = ("model", *(f"{count:,}" for count in counts))
    return Table("Perplexity by evaluations a token", header, tuple(rows))


def _harness(records: Sequence[Record]) -> Table | None:
    found: dict[tuple[str, str], dict[str, float]] = {}
    for record in records:
        if record.name.startswith(HARNESS):
            key = (record.task, record.name.removeprefix(HARNESS).removesuffix(ERROR))
            part = ERROR if record.name.endswith(ERROR) else ""
            found.setdefault(key, {})[record.model + part] = select.number(record)
    if not found:
        return None
    models = list(dict.fromkeys(r.model for r in records if r.name.startswith(HARNESS)))
    rows = tuple(
        (f"{task}, {measure}", *(_scored(values, model, measure) for model in models))
        for (task, measure), values in found.items()
    )
    note = "After ± is the standard error over the items of the task."
    return Table("lm-evaluation-harness", ("task", *models), rows, note)


def _scored(values: dict[str, float], model: str, measure: str) -> str:
    if model not in values:
        return MISSING
    is_share = measure.startswith(("acc", "exact_match"))
    write = percent if is_share else "{:,.2f}".format
    error = values.get(model + ERROR)
    if error is None or not np.isfinite(error):
        return write(values[model])
    return f"{write(values[model])} ± {write(error)}"


def _sweeps(records: Iterable[Record]) -> dict[Line, dict[int, float]]:
    """The perplexity of each line by number of evaluations, the last word on each."""
    found: dict[int, list[Record]] = {}
    for record in records:
        if record.name == "perplexity_at_sweeps" and record.sweeps is not None:
            found.setdefault(record.sweeps, []).append(record)
    lines: dict[Line, dict[int, float]] = {}
    for count, same in found.items():
        for line, by_length in select.lines(same, "perplexity_at_sweeps").items():
            at = by_length[max(by_length)]
            # The count is the limit of these solves.
            line = replace(line, tolerance=None, max_steps=None)
            lines.setdefault(line, {})[count] = sum(map(select.number, at)) / len(at)
    return lines


def _edges(records: Sequence[Record], line: Line, length: int) -> Floats:
    told = select.lines(records, "position_bins")[line][length]
    return np.asarray(told[0].value, dtype=np.float64)


def _mean(records: Sequence[Record], form: str) -> str:
    if not records:
        return MISSING
    return form.format(sum(map(select.number, records)) / len(records))


def perplexity_axis(axes: Axes) -> None:
    """Write perplexities on a y axis along which their logarithms are drawn."""
    low, high = axes.get_ylim()
    room = 0.02 + 0.05 * (high - low)
    axes.set_ylim(low - room, high + room)
    ticks = list(MaxNLocator(6).tick_values(np.exp(low), np.exp(high)))
    if high - low > np.log(8):
        powers = 10.0 ** np.arange(np.floor(low / np.log(10)), np.ceil(high / np.log(10)) + 1)
        ticks = list(np.outer(powers, [1, 2, 5]).ravel())
    inside = [tick for tick in ticks if tick > 0 and low <= np.log(tick) <= high]
    axes.yaxis.set_major_locator(FixedLocator(list(np.log(inside))))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda nats, _: f"{float(f'{np.exp(nats):.3g}'):,g}")
    )
    axes.set_title("perplexity")
