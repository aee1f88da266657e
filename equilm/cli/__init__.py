"""The command line: `equilm train`, `evaluate`, `generate`, `serve` and the rest of `COMMANDS`.

Only reads arguments, calls one function of the package a command, and prints. A user's mistake is
one line and exit code 2, a run that failed is exit code 1. Read `arguments.py` next.
"""

import sys
from collections.abc import Callable

from equilm.cli.arguments import parsed
from equilm.cli.data import DATA_COMMANDS, data_help
from equilm.cli.decoding import generate, traffic
from equilm.cli.figures import reproduce
from equilm.cli.models import check, convert
from equilm.cli.runs import evaluate, report, train
from equilm.cli.serving import serve
from equilm.cli.speech import speak
from equilm.cli.speed import bench, plan
from equilm.cli.terminal import complain

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
        parsed(commands, words, prog=prog, about=about)()
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
