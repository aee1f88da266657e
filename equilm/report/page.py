"""One HTML file from Records: the finding, the tables, the figures, and how to do it again.

The file stands alone: no script, no other host, light and dark as the reader's system asks. What
it says is computed by `tables.py` and `figures.py`; here is only the setting.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import count
from pathlib import Path

from equilm.record import Record
from equilm.report import figures, select, tables
from equilm.report.language import language_tables
from equilm.report.plot import Plot
from equilm.report.speed import speed_tables
from equilm.report.style import DARK, LIGHT
from equilm.report.tables import Table

MAX_LANGUAGE_TABLES = 8
MAX_SPEED_TABLES = 32


def write_page(
    folder: str | Path,
    records: Iterable[Record],
    *,
    title: str,
    command: str = "",
    extras: Mapping[str, str] | None = None,
) -> Path:
    """Write `index.html`: a headline, the tables, the figures, where the numbers come from.

    Args:
        folder: made if it is not there; an older page in it is replaced.
        records: what to show. A section whose Records are missing is left out.
        title: of the page.
        command: what to type to get the same numbers; several lines are well.
        extras: further facts for the last section, such as {"recipe": "recipes/demo.toml"}.

    Returns:
        The file.

    Raises:
        ValueError: there are no Records.
    """
    records = list(records)
    if not records:
        raise ValueError("records: expected at least one Record, got none")
    path = Path(folder) / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_page(records, title, command, extras or {}), encoding="utf-8")
    return path


def headline(records: Iterable[Record]) -> str:
    """The finding in a sentence a task: each model's accuracy at the longest length.

    Args:
        records: Records of an evaluation; without them the last training loss is told.

    Returns:
        The sentences; "" if there is neither.
    """
    records = list(records)
    lines = select.lines(records, "accuracy")
    subjects = dict.fromkeys((line.task, line.split) for line in lines)
    if not subjects:
        return _last_losses(records)
    trained = select.longest_trained(records)
    told = []
    for task, split in subjects:
        same = {line: at for line, at in lines.items() if (line.task, line.split) == (task, split)}
        length = max(max(at) for at in same.values())
        best: dict[str, float] = {}
        for line, at in same.items():
            if length in at:
                share = sum(map(select.number, at[length])) / len(at[length])
                best[line.model] = max(share, best.get(line.model, share))
        opening = f"Trained on at most {trained:,} tokens and tested" if trained else "Tested"
        where = f"on {length:,}" + (f" of {task}" if len(subjects) > 1 else "")
        told.append(f"{opening} {where}: {_compare(best, select.guessing(records, task))}.")
    return " ".join(told)


def _compare(shares: Mapping[str, float], guess: float | None) -> str:
    (first, share), *others = shares.items()
    told = [f"{first or 'the model'} gets {tables.percent(share)} of all tokens right"]
    told += [f"{model} {tables.percent(share)}" for model, share in others]
    told += [] if guess is None else [f"guessing {tables.percent(guess)}"]
    return ", ".join(told)


def _last_losses(records: Sequence[Record]) -> str:
    runs = select.training(records, "loss")
    losses = [
        f"{model or 'the model'} {select.number(run[-1]):.3g} nats after step {run[-1].step:,}"
        for (model, _), run in runs.items()
    ]
    return f"Loss in training: {', '.join(losses)}." if losses else ""


def _page(records: Sequence[Record], title: str, command: str, extras: Mapping[str, str]) -> str:
    lead = headline(records)
    body = [f"<h1>{escape(title)}</h1>", f"<p class=lead>{escape(lead)}</p>" if lead else ""]
    parts = _parts(records)
    for heading, names in _SECTIONS.items():
        told = [parts[name] for name in names if name in parts]
        body += [f"<h2>{heading}</h2>", *told] if told else []
    body.append(_origin(records, extras))
    if command:
        body.append(f"<h2>Do it again</h2><pre>{escape(command)}</pre>")
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        '<meta name=color-scheme content="light dark">'
        f'<meta http-equiv=Content-Security-Policy content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE_SHEET}</style></head>\n<body><main>\n"
        + "\n".join(filter(None, body))
        + "\n</main></body></html>\n"
    )


def _parts(records: Sequence[Record]) -> dict[str, str]:
    """The HTML of every table and figure there is, by name, numbered in the order of reading."""
    found: dict[str, Table | Plot | None] = {
        "accuracy table": tables.accuracy_table(records),
        "last 10 table": tables.accuracy_table(records, name="accuracy_last10"),
        "effort table": tables.effort_table(records),
    }
    found |= {f"language table {n}": table for n, table in enumerate(language_tables(records))}
    found |= {f"speed table {n}": table for n, table in enumerate(speed_tables(records))}
    found |= {plot.name: plot for plot in figures.draw(records)}
    parts: dict[str, str] = {}
    numbers = {Table: count(1), Plot: count(1)}
    for name in (name for names in _SECTIONS.values() for name in names):
        part = found.get(name)
        if isinstance(part, Table):
            parts[name] = _table(next(numbers[Table]), part)
        elif isinstance(part, Plot):
            parts[name] = _figure(next(numbers[Plot]), part)
    return parts


def _table(number: int, table: Table) -> str:
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in table.header)
    body = "".join(
        f"<tr><th scope=row>{escape(row[0])}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    caption = escape(f"{table.title}. {table.note}".strip())
    return (
        f"<figure><div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        f"</table></div><figcaption><b>Table {number}.</b> {caption}</figcaption>"
        "</figure>"
    )


def _figure(number: int, plot: Plot) -> str:
    drawing = plot.svg()
    for name, colour in LIGHT.items():
        drawing = drawing.replace(colour, f"var(--{name})")
    return (
        f"<figure id={plot.name}><div class=wide>{drawing}</div><figcaption>"
        f"<b>Figure {number}. {escape(plot.title)}.</b> {escape(plot.caption)}</figcaption>"
        "</figure>"
    )


def _origin(records: Sequence[Record], extras: Mapping[str, str]) -> str:
    facts = {
        "commit": {record.commit for record in records},
        "device": {record.device for record in records},
        "seed": {str(record.seed) for record in records if record.seed is not None},
        "task": {record.task for record in records},
    }
    told = {name: ", ".join(sorted(values - {""})) for name, values in facts.items()}
    told |= {"measurements": f"{len(records):,}"} | dict(extras)
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in told.items() if value
    )
    return f"<h2>Where the numbers come from</h2><dl>{rows}</dl>"


def _variables(colours: Mapping[str, str]) -> str:
    return ":root{" + "".join(f"--{name}:{colour};" for name, colour in colours.items()) + "}"


_SECTIONS = {
    "What comes out": ("accuracy", "accuracy table", "position", "last 10 table"),
    "What it makes of text": (
        "length-perplexity",
        "perplexity",
        *(f"language table {n}" for n in range(MAX_LANGUAGE_TABLES)),
        "sweeps",
        "evaluations",
    ),
    "What it costs": ("effort table", "effort", "residual"),
    "Inside the state map": ("jacobian",),
    "How fast it is": (
        "scaling",
        "mixers-speed",
        *(f"speed table {n}" for n in range(MAX_SPEED_TABLES)),
    ),
    "How it was trained": ("training", "validation"),
}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE_SHEET = (
    _variables(LIGHT)
    + f"@media (prefers-color-scheme:dark){{{_variables(DARK)}}}"
    + """
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif }
main { max-width: 720px; margin: 0 auto; padding: 4rem 1.25rem 6rem }
h1 { font-size: 2.1rem; line-height: 1.2; letter-spacing: -.02em; margin: 0 0 1rem }
h2 { font-size: 1.3rem; letter-spacing: -.01em; margin: 4.5rem 0 1rem }
.lead { font-size: 1.25rem; line-height: 1.5; color: var(--muted); margin: 0 }
figure { margin: 1.75rem 0 3rem }
figcaption { margin-top: .75rem; font-size: .85rem; line-height: 1.5; color: var(--muted) }
figcaption b { color: var(--ink); font-weight: 600 }
.wide { overflow-x: auto; background:
  linear-gradient(90deg, var(--paper) 1rem, transparent) 0 0 / 2rem 100% no-repeat local,
  linear-gradient(270deg, var(--paper) 1rem, transparent) 100% 0 / 2rem 100% no-repeat local,
  linear-gradient(90deg, var(--faint), transparent) 0 0 / .8rem 100% no-repeat scroll,
  linear-gradient(270deg, var(--faint), transparent) 100% 0 / .8rem 100% no-repeat scroll }
svg { display: block; width: 100%; min-width: 440px; height: auto }
svg text { font-family: inherit !important; font-variant-numeric: tabular-nums }
table { border-collapse: collapse; width: 100%; font-size: .85rem;
  font-variant-numeric: tabular-nums }
th, td { padding: .45rem 0 .45rem .9rem; text-align: right; white-space: nowrap }
th:first-child { text-align: left; padding-left: 0 }
thead th { font-weight: 400; color: var(--muted); border-bottom: 1px solid var(--muted);
  vertical-align: bottom; white-space: normal }
tbody th { font-weight: 500; min-width: 10rem; white-space: normal }
tbody tr + tr > * { border-top: 1px solid var(--faint) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.5rem; margin: 0;
  font-size: .9rem }
dt { color: var(--muted) }
dd { margin: 0; overflow-wrap: anywhere }
pre { margin: 0; padding: .9rem 1rem; border: 1px solid var(--faint); border-radius: 6px;
  overflow-x: auto; font: .85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
"""
)
