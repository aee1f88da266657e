"""Records as tables: said once as a `Table`, written as Markdown or for the terminal.

Not the HTML, which `page.py` writes from the same `Table`. Read next: `figures.py`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from equilm.record import Record
from equilm.report import select

if TYPE_CHECKING:
    import rich.table

MISSING = "—"


@dataclass(frozen=True)
class Table:
    """A table in words: every cell is already text.

    Args:
        title: what the table shows, one line.
        header: names of the columns; the first column names the rows.
        rows: the cells, as many a row as there are columns.
        note: what its words mean, a sentence or more for the page; may be empty.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        """The table in GitHub's Markdown, numbers to the right, without its title."""
        rule = [":--"] + ["--:"] * (len(self.header) - 1)
        cells = [[_escape_markdown(cell) for cell in row] for row in (self.header, *self.rows)]
        lines = [cells[0], rule, *cells[1:]]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def terminal(self) -> rich.table.Table:
        """The table for a rich console."""
        import rich.box
        from rich.table import Table as Rich
        from rich.text import Text

        table = Rich(
            title=Text(self.title),
            title_justify="left",
            box=rich.box.SIMPLE_HEAD,
            collapse_padding=True,
        )
        widths = self._whole_widths()
        # Names stay on one line. Where there is no room for whole numbers they fold, and lose
        # nothing.
        fits = sum(widths) + 2 * len(widths) + 2 <= shutil.get_terminal_size().columns
        for index, name in enumerate(self.header):
            side: Literal["left", "right"] = "right" if index else "left"
            table.add_column(
                Text(name),
                justify=side,
                no_wrap=not index,
                overflow="fold",
                min_width=widths[index] if fits else None,
            )
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table

    def _whole_widths(self) -> list[int]:
        """Letters that each column needs so that no number and no word of its header is folded."""
        widths = []
        for index, (name, *cells) in enumerate(zip(self.header, *self.rows, strict=True)):
            whole = [cell for cell in cells if index == 0 or " " not in cell]
            widths.append(max(map(len, [*name.split(), *whole]), default=0))
        return widths


def accuracy_table(records: Iterable[Record], *, name: str = "accuracy") -> Table | None:
    """Percent of tokens right: a row a model and window, a column a length.

    Args:
        records: Records of an evaluation, others are passed over.
        name: "accuracy", of all tokens, or "accuracy_last10".

    Returns:
        The table; None if no Record has that name. Of several seeds a cell has the mean, and in
        brackets the worst where it is less.
    """
    lines = select.lines(records, name)
    if not lines:
        return None
    lengths = sorted({length for by_length in lines.values() for length in by_length})
    rows = [
        (select.label(line, lines), *(_seeds(by_length.get(length, [])) for length in lengths))
        for line, by_length in lines.items()
    ]
    told = "the last 10 tokens" if name == "accuracy_last10" else "all tokens"
    title = f"Percent of {told} right, by length"
    if any(len(at) > 1 for by_length in lines.values() for at in by_length.values()):
        title += ": the mean over seeds, in brackets the worst where it is less"
    return Table(title, ("model", *(f"{length:,}" for length in lengths)), tuple(rows))


def effort_table(records: Iterable[Record]) -> Table | None:
    """What an answer costs: evaluations a token, how solves ended, speed, size, training time.

    Args:
        records: Records of an evaluation, others are passed over.

    Returns:
        The table, a column a model and window at its longest length; None if there is no such
        Record. A row nobody has a value for is left out.
    """
    records = list(records)
    measured = {name: select.lines(records, name) for name, _, _ in _OF_A_LINE}
    lines = list(dict.fromkeys(line for found in measured.values() for line in found))
    if not lines:
        return None
    longest = {
        line: max(length for found in measured.values() for length in found.get(line, {}))
        for line in lines
    }
    alike = len(set(longest.values())) == 1
    rows = [] if alike else [("length", [f"{longest[line]:,}" for line in lines])]
    for name, header, write in _OF_A_LINE:
        found = measured[name]
        cells = [_cell(found.get(line, {}).get(longest[line], []), write) for line in lines]
        rows.append((header, cells))
    for name, header, write in _OF_A_MODEL:
        told = select.evaluation(records, name)
        cells = [_cell([r for r in told if r.model == line.model], write) for line in lines]
        rows.append((header, cells))
    names = [select.label(line, lines) for line in lines]
    at = f"{max(longest.values()):,} tokens" if alike else "the longest length"
    return Table(
        f"What an answer costs at {at}",
        ("", *names),
        tuple((header, *cells) for header, cells in rows if set(cells) != {MISSING}),
        _WORDS,
    )


def percent(share: float) -> str:
    """A share in percent with one decimal; more where less than all would read as 100.0%."""
    if not math.isfinite(share):
        return str(share)
    digits = 1
    while share < 1 and digits < 6 and float(f"{100 * share:.{digits}f}") == 100:
        digits += 1
    return f"{100 * share:.{digits}f}%"


def count(value: float) -> str:
    """A number of things, with separators; one decimal below a hundred if it is not whole."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _duration(seconds: float) -> str:
    return f"{count(seconds)} s"


_WORDS = (
    "An evaluation is one pass of a token through the layers. Sequential solves one token after "
    "the other, a window of 8 eight at a time. Converged tokens moved less than the tolerance, "
    "capped ones ran out of steps, cycling ones stopped coming nearer."
)
_Column = tuple[str, str, Callable[[float], str]]
_OF_A_LINE: tuple[_Column, ...] = (
    ("evaluations_per_token", "evaluations a token", count),
    ("converged", "converged", percent),
    ("capped", "capped", percent),
    ("cycling", "cycling", percent),
    ("dependent_sweeps", "dependent sweeps", count),
    ("discovery_sweeps", "sweeps before, to find attractors", count),
    ("doubtful_transitions", "transitions in doubt", percent),
    ("tokens_per_second", "tokens/s", count),
)
_OF_A_MODEL: tuple[_Column, ...] = (
    ("parameters", "parameters", count),
    ("seconds", "training", _duration),
)


def _cell(records: Sequence[Record], write: Callable[[float], str]) -> str:
    if not records:
        return MISSING
    return write(sum(map(select.number, records)) / len(records))


def _seeds(records: Sequence[Record]) -> str:
    mean = _cell(records, percent)
    worst = percent(min(map(select.number, records), default=0.0))
    return mean if mean == worst or not records else f"{mean} ({worst})"


def _escape_markdown(cell: str) -> str:
    return cell.replace("|", r"\|").replace("\n", " ")
