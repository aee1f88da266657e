"""Tables say what the Records say, once for Markdown and the terminal."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from equilm.record import Record
from equilm.report.tables import MISSING, Table, accuracy_table, count, effort_table, percent


def test_accuracy_by_line_and_length(records: list[Record]) -> None:
    table = accuracy_table(records)
    assert table is not None
    assert table.header == ("model", "16", "32", "64", "128", "256", "512", "1,024", "2,000")
    assert [row[0] for row in table.rows] == [
        "implicit, sequential",
        "implicit, window 64",
        "implicit, simultaneous",
        "explicit",
    ]
    assert set(table.rows[0][1:]) == {"100.0%"}
    assert table.rows[-1][1:3] == ("97.7%", "79.0%")


def test_last_ten_differ_from_all(records: list[Record]) -> None:
    table = accuracy_table(records, name="accuracy_last10")
    assert table is not None
    assert "last 10" in table.title
    assert table.rows[-1][-1] == "16.7%"


def test_seeds_give_mean_and_worst(records: list[Record]) -> None:
    shift = {1: 0.0, 2: -0.06}
    seeds = [
        replace(r, seed=seed, value=r.value + shift[seed])  # type: ignore[operator]
        for r in records
        if r.name == "accuracy" and r.split == "test" and r.model == "explicit" and r.length == 32
        for seed in shift
    ]
    table = accuracy_table(seeds)
    assert table is not None
    assert table.rows == (("explicit", "76.0% (73.0%)"),)
    assert "worst" in table.title


def test_a_length_not_measured_is_a_dash(records: list[Record]) -> None:
    part = [r for r in records if not (r.model == "explicit" and r.length == 2000)]
    table = accuracy_table(part)
    assert table is not None
    assert table.rows[-1][-1] == MISSING


def test_effort_at_the_longest_length(records: list[Record]) -> None:
    table = effort_table(records)
    assert table is not None
    assert table.title == "What an answer costs at 2,000 tokens"
    columns = [dict(zip(("of", *table.header[1:]), row, strict=True)) for row in table.rows]
    sequential = {row["of"]: row["implicit, sequential"] for row in columns}
    assert sequential == {
        "evaluations a token": "10.5",
        "converged": "98.2%",
        "capped": "0.3%",
        "cycling": "1.5%",
        "tokens/s": "8,571",
        "parameters": "61,312",
        "training": "41.3 s",
    }
    assert [row["explicit"] for row in columns][1:4] == [MISSING] * 3


def test_effort_leaves_out_what_nobody_measured(records: list[Record]) -> None:
    table = effort_table([r for r in records if r.name == "evaluations_per_token"])
    assert table is not None
    assert [row[0] for row in table.rows] == ["evaluations a token"]
    table = effort_table([r for r in records if not (r.model == "explicit" and r.length == 2000)])
    assert table is not None
    assert table.rows[0] == ("length", "2,000", "2,000", "2,000", "1,024")


def test_nothing_measured_is_no_table(records: list[Record]) -> None:
    training = [r for r in records if r.split == "train"]
    assert accuracy_table(training) is None
    assert effort_table(training) is None


@pytest.mark.parametrize(
    ("share", "told"),
    [
        (1.0, "100.0%"),
        (0.99952, "99.95%"),
        (0.999999, "99.9999%"),
        (0.1667, "16.7%"),
        (0.0, "0.0%"),
    ],
)
def test_only_all_is_a_hundred_percent(share: float, told: str) -> None:
    assert percent(share) == told


def test_counts() -> None:
    assert [count(n) for n in (1.0, 10.46, 1234.5)] == ["1", "10.5", "1,234"]
    assert count(float("nan")) == "nan"
    assert percent(float("nan")) == "nan"


def test_markdown_and_terminal_say_the_same() -> None:
    table = Table("[bold]Right", ("model", "16"), (("a|b [red]", "100.0%"), ("c", MISSING)))
    assert table.markdown() == (
        "| model | 16 |\n| :-- | --: |\n| a\\|b [red] | 100.0% |\n| c | — |\n"
    )
    console = Console(file=io.StringIO(), width=80)
    console.print(table.terminal())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(word in shown for word in ("[bold]Right", "a|b [red]", "100.0%", MISSING))


def test_in_a_narrow_terminal_headers_fold_and_numbers_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    header = ("depth", "length", "FLOPs a token", *(f"hours on {number}" for number in range(5)))
    table = Table("A title", header, (("24+4", "2048", "1.656e+11", *["1,234.5"] * 5),))
    for columns, whole in ((80, True), (50, False)):
        monkeypatch.setenv("COLUMNS", str(columns))
        console = Console(width=columns, record=True, file=io.StringIO())
        console.print(table.terminal())
        shown = console.export_text()
        assert ("1.656e+11" in shown and shown.count("1,234.5") == 5) == whole
        # What is folded is not lost.
        assert sum(shown.count(letter) for letter in "6") >= 2
