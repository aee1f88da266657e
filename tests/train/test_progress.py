"""What a person sees, with a terminal and without one."""

import io
import re
from collections.abc import Iterator

from rich.console import Console

from equilm.train.metrics import StepReport
from equilm.train.progress import show

NAME = "[i]mplicit"  # no markup


def reports(num_steps: int, first: int = 1) -> Iterator[StepReport]:
    for step in range(first, num_steps + 1):
        yield StepReport(
            step=step,
            loss=1.79,
            accuracy=0.981,
            length=20,
            sweeps=32.0,
            learning_rate=1e-3,
            grad_norm=0.5,
            tokens_per_second=54_321.0,
            seconds=0.5 * step,
        )


def shown(steps: Iterator[StepReport], num_steps: int, *, terminal: bool, width: int) -> list[str]:
    file = io.StringIO()
    console = Console(force_terminal=terminal, file=file, width=width)
    show(steps, name=NAME, num_steps=num_steps, console=console)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).replace("\r", "\n")
    return [line.rstrip() for line in plain.split("\n") if line.strip()]


def test_without_a_terminal_ten_whole_lines() -> None:
    lines = shown(reports(400), 400, terminal=False, width=40)
    assert len(lines) == 10
    numbers = "loss 1.7900 accuracy 98.1% length 20 sweeps 32 54,321 tokens/s"
    assert lines[0] == f"[i]mplicit 40/400 {numbers} left 180 s"
    assert lines[-1].endswith("left 0 s")


def test_a_short_or_resumed_run_shows_its_last_step() -> None:
    assert len(shown(reports(3), 3, terminal=False, width=80)) == 3
    (line,) = shown(reports(23, first=23), 23, terminal=False, width=80)
    assert line.startswith("[i]mplicit 23/23 ")
    assert shown(reports(0), 5, terminal=False, width=80) == []


def test_a_run_that_ends_early_shows_its_last_step_too() -> None:
    lines = shown(reports(95), 400, terminal=False, width=80)
    assert [line.split()[1] for line in lines] == ["40/400", "80/400", "95/400"]
    assert lines[-1].endswith(" tokens/s ended") and lines[-2].endswith(" left 160 s")


def test_on_a_terminal_one_line_of_a_hundred_columns_shows_all() -> None:
    last = shown(reports(400), 400, terminal=True, width=100)[-1]
    assert len(last) <= 100
    told = "400/400 loss 1.7900 accuracy 98.1% length 20 sweeps 32 54,321 tokens/s left 0"
    assert last.startswith("[i]mplicit ") and told in last
    assert "━━━" in shown(reports(400), 400, terminal=True, width=120)[-1]


def test_on_a_narrow_terminal_nothing_is_lost() -> None:
    text = " ".join(shown(reports(400), 400, terminal=True, width=80)[-2:])
    for part in ("400/400", "loss 1.7900", "accuracy 98.1%", "length 20", "sweeps 32", "left 0"):
        assert part in text
    assert "54,321 tokens/s" in text
