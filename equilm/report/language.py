"""Language models on text: perplexity by length, position and sweeps, duality, zero-shot scores.

Tables and figures from the Records of `equilm evaluate --text` and `--harness`. Read
`extrapolation.py` next.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
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
    """Perplexity along rows of text: a line a model and mode, at its longest length."""
    records = list(records)
    lines = select.lines(records, "loss_by_position")
    bins = {line: _edges(records, line, max(by)) for line, by in lines.items()}
    if not lines:
        return None
    with style():
        figure, [axes] = plot.canvas(height=3.0)
        ticks = sorted({edge for edges in bins.values() for edge in edges[1:]})
        plot.length_axis(axes, ticks[:: max(1, len(ticks) // 8)], "position of the token")
        drawn = {}
        for line, colour in colours(lines).items():
            nats = np.nanmean(select.rows(lines[line][max(lines[line])]), axis=0)
            x = np.sqrt(np.maximum(bins[line][:-1], 1) * bins[line][1:])
            axes.plot(x, nats, **stroke_of(line), color=colour, clip_on=False)
            drawn[select.label(line, lines)] = End(nats[-1], colour, stroke_of(line))
        perplexity_axis(axes)
        plot.label_ends(axes, drawn, height=2.3)
        mark_trained(axes, records)
    caption = "Each point is the mean over a stretch of positions as long as all before it. A "
    caption += "line that rises behind the length of training shows a context that does harm."
    return Plot("perplexity", "Perplexity along the text", caption, figure)


def perplexity_by_sweeps(records: Iterable[Record]) -> Plot | None:
    """Perplexity against evaluations a token: a line a model and mode."""
    lines = _sweeps(records)
    if not any(len(points) > 1 for points in lines.values()):
        return None
    with style():
        figure, [axes] = plot.canvas(height=3.0)
        counts = sorted({count for points in lines.values() for count in points})
        plot.length_axis(axes, counts, "evaluations a token")
        drawn = {}
        for line, colour in colours(lines).items():
            nats = np.log([lines[line][count] for count in sorted(lines[line])])
            axes.plot(sorted(lines[line]), nats, **stroke_of(line), color=colour, clip_on=False)
            drawn[select.label(line, lines)] = End(float(nats[-1]), colour, stroke_of(line))
        perplexity_axis(axes)
        plot.label_ends(axes, drawn, height=2.3)
    caption = "The solve is stopped after so many evaluations, whatever its residual. In "
    caption += "simultaneous mode these are sweeps over the whole sequence."
    return Plot("sweeps", "Perplexity against evaluations", caption, figure)


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
    axes.set_ylim(low - 0.02, high + 0.02)
    ticks = list(MaxNLocator(6).tick_values(np.exp(low), np.exp(high)))
    if high - low > np.log(8):
        powers = 10.0 ** np.arange(np.floor(low / np.log(10)), np.ceil(high / np.log(10)) + 1)
        ticks = list(np.outer(powers, [1, 2, 5]).ravel())
    inside = [tick for tick in ticks if tick > 0 and low <= np.log(tick) <= high]
    axes.yaxis.set_major_locator(FixedLocator(list(np.log(inside))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda nats, _: f"{np.exp(nats):,.3g}"))
    axes.set_title("perplexity")
