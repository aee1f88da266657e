"""What a person sees while a run trains: a live line, or plain ones where there is no terminal.

Nothing shown here is recorded. Read `trainer.py` next.
"""

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from equilm.train.metrics import StepReport

SMOOTHING = 0.9  # of the speed that is shown


def show(reports: Iterable[StepReport], *, name: str, num_steps: int, console: Console) -> None:
    """Run through the reports of a training and show them as they come.

    Args:
        reports: From `Trainer.run()`.
        name: Of the run.
        num_steps: Steps in all.
        console: Where to; without a terminal ten plain lines are printed instead, and one
            where a run ends early.
    """
    if not console.is_terminal:
        _show_plain(reports, name, num_steps, console)
        return
    spare = console.width - 100  # the numbers need a hundred
    columns = [
        TextColumn("[bold]{task.description}"),
        *([BarColumn(bar_width=min(24, spare))] if spare > 4 else []),
        TextColumn("{task.completed}/{task.total}"),
        # In a narrow terminal the numbers take a second line.
        TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=False)),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
    ]
    with Progress(*columns, console=console) as progress:
        line = progress.add_task(escape(name), total=num_steps, numbers="")
        speed = 0.0
        for report in reports:
            weight = SMOOTHING if speed else 0.0
            speed = weight * speed + (1 - weight) * report.tokens_per_second
            progress.update(line, completed=report.step, numbers=_numbers(report, speed))


def _show_plain(reports: Iterable[StepReport], name: str, num_steps: int, console: Console) -> None:
    every = max(1, num_steps // 10)

    def tell(report: StepReport, rest: str) -> None:
        numbers = _numbers(report, report.tokens_per_second)
        line = f"{name} {report.step}/{num_steps} {numbers} {rest}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    report = None
    for report in reports:
        if report.step % every == 0 or report.step == num_steps:
            left = report.seconds / report.step * (num_steps - report.step)
            tell(report, f"left {left:.0f} s")
    if report is not None and report.step < num_steps:
        tell(report, "ended")


def _numbers(report: StepReport, tokens_per_second: float) -> str:
    return (
        f"loss {report.loss:.4f} accuracy {report.accuracy:.1%} length {report.length} "
        f"sweeps {report.sweeps:.0f} {tokens_per_second:,.0f} tokens/s"
    )
