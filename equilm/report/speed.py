"""Tables of speed from the Records of `equilm bench`: what came out, and how near its floor.

Read next: `scaling.py` and `mixing.py`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from equilm.record import Record
from equilm.report import select
from equilm.report.tables import MISSING, Table

PREFIX, OPERATIONS = "bench_", "ops"
TITLES = {
    "train": "A training step",
    "ops": "Operations",
    "mixing": "Mixers by the length, tokens alike",
    "generation": "A generated token of explicit models",
    "decode": "A sweep of all layers for one token a sequence",
    "by_batch": "A training step by the batch",
    "by_length": "A training step by the length, tokens alike",
    "by_sweeps": "A training step by the sweeps",
    "by_phantom": "A training step by the phantom steps",
}
USUAL = ("", "full", "bf16", "float32")

Values = Mapping[str, float]


class Measured(NamedTuple):
    """One row of a benchmark: what was timed, where, and what came out by its short name."""

    what: str
    record: Record  # any of its Records, for what they have in common
    values: Values

    @property
    def model(self) -> str:
        """The model, and the type of its sweeps if it is unusual."""
        return _typed(self.record.model, self.record.precision)

    @property
    def label(self) -> str:
        """Its name in a table."""
        r = self.record
        depth = None if r.sweeps is None or r.phantom is None else (r.sweeps, r.phantom)
        return label(
            r.model,
            part=r.part,
            batch=r.batch or 1,
            length=r.length or 1,
            depth=depth,
            precision=r.precision,
        )


def label(
    model: str,
    *,
    part: str = "",
    batch: int,
    length: int,
    depth: tuple[int, int] | None,
    precision: str,
) -> str:
    """The name of a row: model, part, depth, type of the sweeps if it is unusual, and shape."""
    deep = "" if depth is None else f"{depth[0]}+{depth[1]}"
    named = _typed(" ".join(filter(None, (model, part, deep))), precision)
    return f"{named} {batch}×{length}"


def measured(records: Iterable[Record]) -> list[Measured]:
    """The rows of all benchmarks in the order of their first Records; of repeated ones the last."""
    found: dict[tuple[object, ...], Measured] = {}
    for r in records:
        for what in TITLES:
            opening = f"{PREFIX}{what}_"
            if r.name.startswith(opening):
                shape = (r.batch, r.length, r.sweeps, r.phantom, r.precision)
                key = (what, r.device, r.model, r.part, *shape)
                before = found[key].values if key in found else {}
                value = {r.name.removeprefix(opening): select.number(r)}
                found[key] = Measured(what, r, {**before, **value})
    return list(found.values())


def speed_tables(records: Iterable[Record]) -> list[Table]:
    """Two tables a benchmark and device: what came out, and how near it is to the floor.

    Operations have one table a model. Where no floor is known there is only the first table, with
    all columns. A column that nobody has a value for is left out.

    Args:
        records: Of `equilm bench`; others are passed over.
    """
    groups: dict[tuple[str, str], list[Measured]] = {}
    for row in measured(records):
        r = row.record
        title = f"{TITLES[row.what]} on {r.device or 'an unnamed device'}"
        if row.what == OPERATIONS:
            title = f"{TITLES[row.what]} of {r.model} {r.batch}×{r.length} on {r.device}"
        groups.setdefault((row.what, title), []).append(row)
    tables = []
    for (what, title), rows in groups.items():
        if what == OPERATIONS:
            named = {row.record.part: row.values for row in rows}
            tables.append(_table(title, _OPERATION, named, _WORDS))
            continue
        named = {row.label: row.values for row in rows}
        if any("floor_compute" in values for values in named.values()):
            tables.append(_table(title, _OUTCOME, named))
            tables.append(_table(f"{title}, and its floor", _EFFICIENCY, named, _WORDS))
        else:
            tables.append(_table(title, _OUTCOME | _EFFICIENCY, named))
    return tables


def cell(value: float) -> str:
    """A measured number: three or four digits, and separators from a thousand on."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if value >= 1 else f"{value:.3g}"


def _typed(name: str, precision: str) -> str:
    return name if precision in USUAL else f"{name} {precision}"


def _table(title: str, columns: "_Columns", rows: Mapping[str, Values], note: str = "") -> Table:
    lines = [(name, *(write(row) for write in columns.values())) for name, row in rows.items()]
    names = ("", *columns)
    kept = [n for n in range(len(names)) if not n or {line[n] for line in lines} != {MISSING}]
    return Table(
        title,
        tuple(names[n] for n in kept),
        tuple(tuple(line[n] for n in kept) for line in lines),
        note,
    )


def _number(name: str) -> Callable[[Values], str]:
    return lambda values: cell(values[name]) if name in values else MISSING


def _goal(name: str, reached_by: str) -> Callable[[Values], str]:
    def write(values: Values) -> str:
        if name not in values or reached_by not in values:
            return MISSING
        reached = ", reached" if values[reached_by] <= values[name] else ""
        return f"≤ {values[name]:g}{reached}"

    return write


def _faster(values: Values) -> str:
    return cell(values["reference"] / values["time"]) if "reference" in values else MISSING


def _floor_ms(values: Values) -> float | None:
    sides = [values[name] for name in ("floor_compute", "floor_memory") if name in values]
    return max(sides, default=None)


def _floor(values: Values) -> str:
    floor_ms = _floor_ms(values)
    if floor_ms is None:
        return MISSING
    return f"{cell(floor_ms)} {'compute' if floor_ms == values['floor_compute'] else 'memory'}"


def _over_floor(values: Values) -> str:
    floor_ms = _floor_ms(values)
    return MISSING if not floor_ms else f"{values['time'] / floor_ms:.2f}"


_Columns = dict[str, Callable[[Values], str]]
_OUTCOME: _Columns = {
    "ms": _number("time"),
    "goal ms": _goal("goal", "time"),
    "times faster": _faster,
    "tokens/s": _number("speed"),
    "GiB": _number("memory"),
    "goal GiB": _goal("goal_memory", "memory"),
}
_EFFICIENCY: _Columns = {
    "TFLOP/s": _number("rate"),
    "TB/s": _number("bandwidth"),
    "floor ms": _floor,
    "× floor": _over_floor,
}
_OPERATION: _Columns = {"ms": _number("time")} | _EFFICIENCY
_WORDS = (
    "The floor is the larger of two times: all products at the device's rate for them, or all "
    "bytes that must move at its rate for a copy."
)
