"""One table of all mixers: what each learns, how fast it is, what it carries.

Read `equilm/reproduce/mixers.py`, which measures it.
"""

from collections.abc import Callable, Iterable, Sequence
from statistics import median

from equilm.record import Record
from equilm.report import select
from equilm.report.tables import MISSING, Table, count, percent

IMPLICIT = "-implicit"  # after the name of a mixer, whose stack is iterated
GROUP = "mixers-"  # before the name of a task, in the folders of runs

# What a task's Records tell: its part, the header, and the name of the Record.
TASKS = (
    ("parity", "parity", "accuracy_last10"),
    ("tracking", "", "accuracy_last10"),
    ("copying", "selective copying", "accuracy"),
    ("induction", "induction heads", "accuracy"),
    ("recall", "MQAR", "accuracy"),
    ("list_ops", "ListOps", "accuracy"),
)
PACE = (
    ("train_tokens_per_second", "training, tokens/s"),
    ("decode_tokens_per_second", "decoding, tokens/s"),
    ("state_bytes", "state after {tokens} tokens, bytes"),
)
_WORDS = (
    "Percent of what is asked that is right, at the test length in the header: of the last ten "
    "tokens in parity and group products, of all that is asked elsewhere. Where a word stands for "
    "a number, the run failed with it."
)
_Cells = dict[str, str]


def mixers_table(records: Iterable[Record]) -> Table | None:
    """A row a mixer, a column a task or a pace; "explicit / implicit" in each cell.

    Args:
        records: Those of `equilm reproduce mixers`; `part` tells the task.

    Returns:
        The table, at the longest test length of each task, or the longest that a model has; None
        without Records. Of several seeds a cell has the median.
    """
    records = list(records)
    names = list(dict.fromkeys(r.model.removesuffix(IMPLICIT) for r in records if r.model))
    if not names:
        return None
    columns = [_task_column(records, *told) for told in TASKS]
    columns += [_pace_column(records, *told) for told in PACE]
    columns = [column for column in columns if column[1]]
    rows = tuple((name, *(_both(cells, name) for _, cells in columns)) for name in names)
    header = ("mixer", *(header for header, _ in columns))
    title = f"Every mixer, explicit / implicit, {_seeds(records)}"
    return Table(title, header, rows, _WORDS)


def ablation_table(records: Iterable[Record]) -> Table | None:
    """A row a setting, a column a task: percent right, and bits a token of text.

    Args:
        records: Those of `equilm reproduce mamba-ablations`.

    Returns:
        The table, at the longest test length of each task, of several seeds the median; None
        without Records.
    """
    records = list(records)
    names = list(dict.fromkeys(r.model for r in records if r.model))
    columns = [_task_column(records, *told) for told in TASKS]
    text = [r for r in records if r.name == "bits" and r.part == "text"]
    columns.append(("text, bits a token", _medians(text, "{:.3f}".format)))
    columns = [column for column in columns if column[1]]
    if not columns:
        return None
    rows = tuple((name, *(told.get(name, MISSING) for _, told in columns)) for name in names)
    header = ("setting", *(header for header, _ in columns))
    return Table("Mamba with one thing changed", header, rows)


def _seeds(records: Sequence[Record]) -> str:
    """How many seeds a cell has, the fewest and the most."""
    found: dict[tuple[str, str], set[int | None]] = {}
    for r in records:
        if r.name != "failed":
            found.setdefault((r.model, r.part), set()).add(r.seed)
    counts = {len(seeds) for seeds in found.values()} or {1}
    few, many = min(counts), max(counts)
    if many == 1:
        return "one seed"
    return f"medians of {many} seeds" if few == many else f"medians of {few} to {many} seeds"


def _task_column(records: Sequence[Record], part: str, title: str, name: str) -> tuple[str, _Cells]:
    found = [r for r in records if r.part == part and r.name == name]
    lengths: dict[str, int] = {}
    for r in found:
        lengths[r.model] = max(lengths.get(r.model, 0), r.length or 0)
    longest = max(lengths.values(), default=0)
    kept = [r for r in found if r.length == lengths[r.model]]
    cells = {
        model: cell if lengths[model] == longest else f"{cell} at {lengths[model]:,}"
        for model, cell in _medians(kept, percent).items()
    }
    for r in records:
        if r.name == "failed" and r.part.endswith(f"-{part}"):
            cells.setdefault(r.model, r.task.partition(":")[0])
    if not title:
        title = kept[0].task.split()[-1] if kept else part
    return f"{title} {longest:,}" if kept else title, cells


def _pace_column(records: Sequence[Record], name: str, title: str) -> tuple[str, _Cells]:
    found = [r for r in records if r.name == name]
    tokens = max((r.length or 0 for r in found), default=0)
    return title.format(tokens=f"{tokens:,}"), _medians(found, count)


def _medians(records: Sequence[Record], write: Callable[[float], str]) -> _Cells:
    values: dict[str, list[float]] = {}
    for r in records:
        values.setdefault(r.model, []).append(select.number(r))
    return {model: write(median(told)) for model, told in values.items()}


def _both(cells: _Cells, name: str) -> str:
    return f"{cells.get(name, MISSING)} / {cells.get(name + IMPLICIT, MISSING)}"
