"""Questions of stories: accuracy by task, by length of the story, and the work by that length.

Each function picks its Records and draws them, or returns None if there are none. Read next:
`figures.py`.
"""

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes

from equilm.record import Record
from equilm.report import plot
from equilm.report.plot import End, Plot
from equilm.report.select import Floats
from equilm.report.style import LINES, style
from equilm.report.tables import Table, percent
from equilm.report.tracking import named


def accuracy_by(records: Iterable[Record], *, label: str = "task") -> Plot | None:
    """Bars of the accuracy of each label: a colour a model, the median of the seeds.

    Args:
        records: Of stories.
        label: What the task tells its stories apart by, as `StoryTask.label` says.
    """
    name = f"accuracy_by_{label}"
    found = {model: _median(told) for model, told in named(records, name).items()}
    if not found:
        return None
    longest = max(each.size for each in found.values())
    labels = [k for k in range(longest) if any(_has(each, k) for each in found.values())]
    width = 0.8 / len(found)
    with style():
        figure, [axes] = plot.canvas(height=2.8)
        for index, (model, each) in enumerate(found.items()):
            values = [each[k] if _has(each, k) else 0.0 for k in labels]
            at = np.arange(len(labels)) + (index - (len(found) - 1) / 2) * width
            axes.bar(at, values, 0.9 * width, color=LINES[index % len(LINES)], label=model)
        axes.set_xticks(range(len(labels)), [str(one) for one in labels])
        axes.set_xlabel(label)
        axes.set_title("questions right")
        plot.share_axis(axes)
        figure.legend(loc="outside upper right", ncols=min(4, len(found)), frameon=False)
    caption = f"Questions of the test split by {label}, the median of the seeds."
    return Plot("tasks", f"Questions by {label}", caption, figure)


def by_story_length(records: Iterable[Record]) -> Plot | None:
    """Accuracy and evaluations against the words of the story before the question."""
    records = list(records)
    names = {
        "accuracy_by_story_length": "questions right",
        "evaluations_by_story_length": "evaluations of the word that is answered at",
    }
    panels = {name: named(records, name) for name in names}
    panels = {name: found for name, found in panels.items() if found}
    if not panels:
        return None
    models = list(dict.fromkeys(model for found in panels.values() for model in found))
    with style():
        figure, grid = plot.canvas(len(panels), height=0.6 + 1.9 * len(panels), share_x=True)
        for axes, (name, found) in zip(grid, panels.items(), strict=True):
            axes.set_title(names[name])
            ends = {
                model: _draw(axes, _median(told), LINES[models.index(model) % len(LINES)])
                for model, told in found.items()
            }
            if name.startswith("accuracy"):
                plot.share_axis(axes)
            else:
                axes.set_ylim(bottom=0)
            plot.label_ends(axes, ends, height=1.5)
        grid[-1].set_xlabel("words of the story up to the question")
    caption = "Questions put together by the length of the story before them, in powers of two."
    return Plot("stories", "Questions by length of the story", caption, figure)


def questions_table(records: Iterable[Record], *, part: str = "questions") -> Table | None:
    """Percent of questions of a part right: a row a model, every seed, best and median."""
    found = named([r for r in records if r.part == part], "accuracy")
    if not found:
        return None
    rows = []
    for model, told in found.items():
        values = [float(np.mean(r.value)) for r in told]
        seeds = ", ".join(percent(value) for value in values)
        rows.append((model, percent(float(np.median(values))), percent(max(values)), seeds))
    title = "Percent of questions right" + ("" if part == "questions" else f", {part}")
    return Table(title, ("model", "median", "best", "every seed"), tuple(rows))


def language_table(records: Iterable[Record]) -> Table | None:
    """Percent of tokens right at the longest test length: a row a model, a column a language."""
    shares: dict[tuple[str, str], list[float]] = {}
    told = [r for r in records if r.name == "accuracy" and r.part == "languages"]
    longest = max((r.length or 0 for r in told), default=0)
    for r in told:
        if r.length == longest:
            shares.setdefault((r.model, r.task), []).append(float(np.mean(r.value)))
    if not shares:
        return None
    models = dict.fromkeys(model for model, _ in shares)
    tasks = tuple(dict.fromkeys(task for _, task in shares))
    rows = tuple(
        (model, *(_cell(shares.get((model, task), [])) for task in tasks)) for model in models
    )
    title = f"Percent of answers right at {longest:,} tokens, median and best seed"
    return Table(title, ("model", *tasks), rows)


def _cell(values: list[float]) -> str:
    if not values:
        return "—"
    middle, best = percent(float(np.median(values))), percent(max(values))
    return middle if len(values) == 1 else f"{middle} ({best})"


def _draw(axes: Axes, by_power: Floats, colour: str) -> End:
    kept = np.flatnonzero(np.isfinite(by_power))
    # The middle of 2^k to 2^(k+1) on a log axis.
    x, y = 2.0 ** (kept + 0.5), by_power[kept]
    plot.length_axis(axes, (2.0 ** np.arange(kept[0], kept[-1] + 2)).tolist(), "")
    axes.plot(x, y, "o-", color=colour, clip_on=False)
    return End(float(y[-1]), colour, {"marker": "o"})


def _median(told: list[Record]) -> Floats:
    longest = max(len(np.atleast_1d(r.value)) for r in told)
    rows = [np.atleast_1d(np.asarray(r.value, dtype=np.float64)) for r in told]
    padded = [np.pad(row, (0, longest - row.size), constant_values=np.nan) for row in rows]
    stacked = np.ma.masked_invalid(np.stack(padded))
    return np.ma.filled(np.ma.median(stacked, axis=0), np.nan)


def _has(series: Floats, index: int) -> bool:
    return index < series.size and bool(np.isfinite(series[index]))
