"""The command line: `equilm train`, `evaluate`, `generate`, `serve` and the rest of `COMMANDS`.

Only reads arguments, calls one function of the package a command, and prints. A user's mistake is
one line and exit code 2, a run that failed is exit code 1. Read `terminal.py` next.
"""

import re
import sys
from collections.abc import Callable, Collection
from inspect import cleandoc

import tyro
from tyro.conf import FlagCreatePairsOff

from equilm.cli.data import DATA_COMMANDS, data_help
from equilm.cli.decoding import generate, traffic
from equilm.cli.figures import reproduce
from equilm.cli.models import check, convert
from equilm.cli.runs import evaluate, report, train
from equilm.cli.serving import serve
from equilm.cli.speech import speak
from equilm.cli.speed import bench, plan
from equilm.cli.terminal import complain
from equilm.config import suggest

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "generate": generate,
    "speak": speak,
    "serve": serve,
    "check": check,
    "report": report,
    "convert": convert,
    "bench": bench,
    "traffic": traffic,
    "reproduce": reproduce,
    "plan": plan,
    # A second word follows, which `main` looks up in a table of its own.
    "data": data_help,
}


def main() -> None:
    """Run one command; a user's mistake is one line, not a traceback."""
    try:
        words, commands, prog = sys.argv[1:], COMMANDS, "equilm"
        about = "Sequence models whose layers are iterated to a fixed point."
        if words[:1] == ["data"]:
            words, commands, prog = words[1:], DATA_COMMANDS, "equilm data"
            about = "Text as tokens on disk: prepared once, read by step number ever after."
        _check_command(words[:1], commands)
        for command in commands.values():
            command.__doc__ = _flowing(command.__doc__ or "")
        tyro.extras.subcommand_cli_from_dict(
            commands, prog=prog, description=about, args=words, config=(FlagCreatePairsOff,)
        )
    except KeyboardInterrupt:
        complain("interrupted")
        sys.exit(130)
    except (ValueError, OSError) as error:
        complain(str(error))
        sys.exit(2)
    except RuntimeError as error:
        # Diverged, NotConverged and what PyTorch raises for memory: a failure, not a mistake.
        complain(str(error))
        sys.exit(1)


def _check_command(given: list[str], commands: Collection[str]) -> None:
    """Refuse a word that is no command; everything else is for the parser to judge."""
    for word in given:
        if word not in commands and not word.startswith("-"):
            raise ValueError(f"{word}: unknown command; {suggest(word, commands)}")


def _flowing(text: str) -> str:
    """A docstring whose arguments are told in one line each, for the parser keeps their breaks."""
    return re.sub(r"\n {8,}(?=\S)", " ", cleandoc(text))
