"""Arguments of a command, read by tyro; a mistake in them is one line and not a box.

Read `terminal.py` next.
"""

import re
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import redirect_stderr
from functools import partial, wraps
from inspect import cleandoc
from io import StringIO
from typing import Any

import tyro
from tyro.conf import FlagCreatePairsOff

from equilm.config import suggest

Command = Callable[..., None]


def parsed(
    commands: Mapping[str, Command], words: list[str], *, prog: str, about: str
) -> Callable[[], None]:
    """Return the command that the words ask for, with its arguments, to be called.

    Args:
        commands: By name; their docstrings tell the arguments.
        words: What was typed behind `prog`.
        prog: The name of the program, and of its part if there are any.
        about: What `--help` says of it.

    Raises:
        ValueError: For a word that is no command, or a mistake in its arguments.
        SystemExit: After `--help`.
    """
    _check_command(words[:1], commands)
    read: Callable[..., Any] = partial(
        tyro.extras.subcommand_cli_from_dict,
        {name: _postponed(command) for name, command in commands.items()},
        description=about,
    )
    if words and words[0] in commands:
        # Else what it takes to be meant comes from the other commands too.
        prog, read = f"{prog} {words[0]}", partial(tyro.cli, _postponed(commands[words[0]]))
        words = words[1:]
    told = StringIO()
    try:
        with redirect_stderr(told):
            command: Callable[[], None] = read(prog=prog, args=words, config=(FlagCreatePairsOff,))
    except SystemExit as end:
        if end.code:
            raise ValueError(_line(told.getvalue(), prog)) from None
        raise
    sys.stderr.write(told.getvalue())
    return command


def _check_command(given: list[str], commands: Collection[str]) -> None:
    """Refuse a word that is no command; everything else is for the parser to judge."""
    for word in given:
        if word not in commands and not word.startswith("-"):
            raise ValueError(f"{word}: unknown command; {suggest(word, commands)}")


def _postponed(command: Command) -> Callable[..., Callable[[], None]]:
    """Take a command's arguments without calling it."""

    @wraps(command)
    def postponed(*given: Any, **named: Any) -> Callable[[], None]:
        return partial(command, *given, **named)

    # Arguments that are told in one line each, for the parser keeps the breaks of a docstring.
    postponed.__doc__ = re.sub(r"\n {8,}(?=\S)", " ", cleandoc(command.__doc__ or ""))
    return postponed


def _line(told: str, prog: str) -> str:
    """What a box says above its first rule, and the first thing it takes to be meant."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", told)
    rows = [row[2:].rstrip(" │") for row in plain.splitlines()[1:]]
    # What is indented twice tells of an argument what its help does.
    text = "".join(f"{row.strip()}\n" for row in rows if not row.startswith(" " * 8))
    first, *rest = filter(None, re.split(r"(?m)^[─╯-]*\n", text))
    line = " ".join(first.split("\n")).strip().replace(f"Missing from {prog}:", "missing")
    meant = [one.split("\n")[1] for one in rest if one.startswith("Perhaps you meant")]
    line += "".join(f"; nearest is {one}" for one in meant)
    return ": ".join([*prog.split(" ", 1)[1:], line])
