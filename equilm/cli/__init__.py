"""The command line: `equilm train`, `evaluate`, `generate`, `serve` and the rest of `COMMANDS`.

Only reads arguments, calls one function of the package a command, and prints. A user's mistake is
one line and exit code 2, a run that failed is exit code 1. Read `terminal.py` next.
"""

import sys
from collections.abc import Callable

import tyro
from tyro.conf import FlagCreatePairsOff

from equilm.cli.decoding import generate, traffic
from equilm.cli.models import check, convert
from equilm.cli.runs import evaluate, report, train
from equilm.cli.serving import serve
from equilm.cli.speed import bench
from equilm.cli.terminal import complain
from equilm.config import suggest

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "generate": generate,
    "serve": serve,
    "check": check,
    "report": report,
    "convert": convert,
    "bench": bench,
    "traffic": traffic,
}


def main() -> None:
    """Run one command; a user's mistake is one line, not a traceback."""
    try:
        _check_command(sys.argv[1:2])
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="equilm",
            description="Sequence models whose layers are iterated to a fixed point.",
            config=(FlagCreatePairsOff,),
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


def _check_command(given: list[str]) -> None:
    """Refuse a word that is no command; everything else is for the parser to judge."""
    for word in given:
        if word not in COMMANDS and not word.startswith("-"):
            raise ValueError(f"{word}: unknown command; {suggest(word, COMMANDS)}")
