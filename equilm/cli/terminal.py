"""What every command shares: how arguments are shown, and the two places that are printed to.

Read `runs.py` next.
"""

import os
import sys
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console
from tyro.conf import arg

# A pipe or a file has no width: tables keep their numbers whole there.
console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)
errors = Console(stderr=True)


def argument(metavar: str, *, name: str | None = None) -> object:
    """How an argument is shown in --help: without a default, which its text tells."""
    return arg(metavar=metavar, name=name, help_behavior_hint="")


def waiting(words: str) -> AbstractContextManager[object]:
    """Say what is being waited for: a spinner in a terminal, a line elsewhere."""
    if console.is_terminal:
        return console.status(words)
    say(words)
    return nullcontext()


def say(line: str) -> None:
    """Print a line as it is."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def complain(message: str) -> None:
    """Print what went wrong to standard error, marked as ours."""
    for line in message.splitlines():
        errors.print(f"equilm: {line}", style="red", highlight=False, markup=False, soft_wrap=True)
