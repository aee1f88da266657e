"""Which Records a table row or a curve is made of: the last word on each, gathered by line.

Knows names and lengths, nothing of drawing. Read next: `tables.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from equilm.record import Record

TRAIN = "train"

Floats = NDArray[np.float64]
Runs = dict[tuple[str, int | None], list[Record]]
# Model, task, split, tolerance and max_steps, as in `Line`.
_Subject = tuple[str, str, str, float | None, int | None]


@dataclass(frozen=True)
class Line:
    """What stays the same along a table row or a curve: everything but the length and the seed.

    Args:
        model: name of the run.
        task: name of the task.
        split: "valid" or "test".
        mode: "sequential", "window 64", "simultaneous"; "" where windows do not apply.
        tolerance: of the solve; None where there was none, or it is not told.
        max_steps: evaluations that a token might take in it; None likewise.
    """

    model: str
    task: str
    split: str
    mode: str
    tolerance: float | None = None
    max_steps: int | None = None


def training(records: Iterable[Record], name: str) -> Runs:
    """The training Records of one name, by model and seed, in order of the step."""
    runs: Runs = {}
    for record in records:
        if record.split == TRAIN and record.name == name and record.step is not None:
            runs.setdefault((record.model, record.seed), []).append(record)
    return {run: sorted(found, key=attrgetter("step")) for run, found in runs.items()}


def evaluation(records: Iterable[Record], name: str) -> list[Record]:
    """The evaluation Records of one name; of those that differ only in step, the latest."""
    measured = [r for r in records if r.split != TRAIN and r.name == name and r.value != []]
    latest: dict[tuple[object, ...], Record] = {}
    for subject, same in _by_subject(measured).items():
        for r in same:
            key = (*subject, r.length, r.window, r.seed, r.row)
            if key not in latest or (r.step or 0) >= (latest[key].step or 0):
                latest[key] = r
    return list(latest.values())


def implicit_first(records: Iterable[Record]) -> list[Record]:
    """The Records of models that solve before those of others, which else keep their order.

    Lines are coloured in the order of their models, so that figures agree across pages.
    """
    records = list(records)
    solved = {r.model for r in records if r.window is not None}
    return sorted(records, key=lambda record: record.model not in solved)


def lines(records: Iterable[Record], name: str) -> dict[Line, dict[int, list[Record]]]:
    """The evaluation Records of one name, by line and by length (0 if untold), shortest first.

    A window as long as the sequence, or longer, is simultaneous mode. Where a fixed window is
    measured on longer sequences too, such a Record also begins the line of that window.
    """
    measured = evaluation(records, name)
    found: dict[Line, dict[int, list[Record]]] = {}
    for (model, task, split, tolerance, max_steps), same in _by_subject(measured).items():
        for mode, chosen in _modes(same):
            by_length: dict[int, list[Record]] = {}
            for record in sorted(chosen, key=lambda r: r.length or 0):
                by_length.setdefault(record.length or 0, []).append(record)
            found[Line(model, task, split, mode, tolerance, max_steps)] = by_length
    return found


def _by_subject(records: Sequence[Record]) -> dict[_Subject, list[Record]]:
    """Records that one line may hold: of one model, task, split and limits of the solve.

    Limits that are not told are those of the model's other solves there, if these agree.
    """
    limits: dict[tuple[str, str, str], set[tuple[float | None, int | None]]] = {}
    for r in records:
        if r.window is not None and (r.tolerance, r.max_steps) != (None, None):
            limits.setdefault((r.model, r.task, r.split), set()).add((r.tolerance, r.max_steps))
    found: dict[_Subject, list[Record]] = {}
    for r in records:
        about, told = (r.model, r.task, r.split), (r.tolerance, r.max_steps)
        if r.window is not None and told == (None, None) and len(limits.get(about, ())) == 1:
            (told,) = limits[about]
        found.setdefault((*about, *told), []).append(r)
    return found


def _modes(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    solved = [(r.window, r.length or 0, r) for r in records if r.window is not None]
    fixed = sorted({w for w, length, _ in solved if 1 < w < length})
    modes = [
        ("", [r for r in records if r.window is None]),
        ("sequential", [r for w, _, r in solved if w == 1]),
    ]
    for window in fixed:
        chosen = [r for w, length, r in solved if w == window or window > w == length > 1]
        modes.append((f"window {window:,}", chosen))
    whole = [r for w, length, r in solved if w >= length and w > 1]
    # Short sequences that a fixed window covers do not make a simultaneous line of their own.
    if any((r.length or 0) > max(fixed, default=1) for r in whole):
        modes.append(("simultaneous", whole))
    return [(mode, chosen) for mode, chosen in modes if chosen]


def longest(records: Iterable[Record], name: str) -> dict[Line, list[Record]]:
    """The series of one name by line, at the line's longest length, of one seed, by row."""
    found = {}
    for line, by_length in lines(records, name).items():
        at = by_length[max(by_length)]
        same_seed = [record for record in at if record.seed == at[0].seed]
        found[line] = sorted(same_seed, key=lambda record: record.row or 0)
    return found


def label(line: Line, among: Iterable[Line]) -> str:
    """The name of a line in words: its model and mode, then what else tells it from the others."""
    others = list(among)
    parts = [line.model or "model", line.mode]
    parts += [line.task] if len({other.task for other in others}) > 1 else []
    parts += [line.split] if len({other.split for other in others}) > 1 else []
    # Between lines that solve alone: an explicit model has no limits to tell.
    if line.tolerance is not None and _differ(other.tolerance for other in others if other.mode):
        parts.append(f"tolerance {line.tolerance:g}")
    if line.max_steps is not None and _differ(other.max_steps for other in others if other.mode):
        parts.append(f"at most {line.max_steps:,} steps")
    return ", ".join(part for part in parts if part)


def _differ(values: Iterable[object]) -> bool:
    return len(set(values)) > 1


def number(record: Record) -> float:
    """The value of a Record that holds one number; the mean of a series."""
    return float(np.mean(record.value))


def rows(records: Iterable[Record]) -> Floats:
    """Series stacked by `row`, the shorter ones filled up with NaN; shape (rows, longest)."""
    ordered = sorted(records, key=lambda record: record.row or 0)
    series = [r.value if isinstance(r.value, list) else [r.value] for r in ordered]
    stacked = np.full((len(series), max(map(len, series))), np.nan)
    for index, values in enumerate(series):
        stacked[index, : len(values)] = values
    return stacked


def guessing(records: Iterable[Record], task: str) -> float | None:
    """The accuracy of guessing on a task, a share; None if no Record tells it."""
    told = [r for r in evaluation(records, "chance") if r.task in (task, "")]
    return number(max(told, key=lambda r: r.length or 0)) if told else None


def longest_trained(records: Iterable[Record]) -> int | None:
    """The longest training sequence of any model, tokens; None if no Record tells it."""
    told = [number(r) for run in training(records, "length").values() for r in run]
    return int(max(told)) if told else None
