"""ListOps: the value of nested lists such as [MAX 2 9 [MIN 4 7 ] 0 ], asked where they close.

Next: `pixels.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Literal, final

import torch

from equilm.tasks.task import IGNORE, Batch, Task, check_position, position_generator

WORDS = (*map(str, range(10)), "[MIN", "[MAX", "[MED", "[SM", "]", "end")
CLOSE, END = WORDS.index("]"), WORDS.index("end")
OPERATOR = 0.25  # chance that a node is a list and no digit
MAX_DRAWN = 1000  # expressions, before the longest of them must do


@dataclass(frozen=True, kw_only=True)
class ListOpsConfig:
    """How deep, how wide, and what is asked.

    Args:
        max_depth: Nodes on the way to a digit at most, at least 2.
        max_arguments: Of a list; 2 at least.
        asked: `end` asks the value of the whole alone, `each` that of every list where it closes.

    Raises:
        ValueError: a number out of range.

    Source: Tay et al. 2020 (Long Range Arena), arXiv 2011.04006: depth 10, 10 arguments, the end
    asked, 500 to 2,000 tokens; Nangia and Bowman 2018, arXiv 1804.06028.
    """

    kind: Literal["list_ops"] = "list_ops"
    max_depth: int = 10
    max_arguments: int = 10
    asked: Literal["end", "each"] = "end"

    def __post_init__(self) -> None:
        for name in ("max_depth", "max_arguments"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}: expected an integer >= 2, got {getattr(self, name)}")


@final
class ListOps(Task):
    """An expression of T/4 (where there are such) to T tokens a row, then "end" up to its end.

    Args:
        config: how deep, how wide, and what is asked.
    """

    asks_at_end = True

    def __init__(self, config: ListOpsConfig) -> None:
        self.config = config
        self.vocab_size = len(WORDS)
        self.name = "list_ops" if config.asked == "end" else "list_ops each"

    def batch(self, *, split: str, length: int, batch_size: int, seed: int, index: int) -> Batch:
        """Random expressions and their values; see `Task`.

        T is at least 4; IGNORE but where a list closes that is asked.
        """
        check_position(split=split, length=length, batch_size=batch_size, index=index)
        if length < 4:
            raise ValueError(f"length: expected an integer >= 4, got {length}")
        generator = position_generator(split=split, length=length, seed=seed, index=index)
        random = Random(int(torch.randint(2**62, (), generator=generator)))
        tokens_BT = torch.full((batch_size, length), END)
        targets_BT = torch.full((batch_size, length), IGNORE)
        for row in range(batch_size):
            told = self._draw(random, length)
            places, answers = list_values(told)
            if self.config.asked == "end":
                places, answers = places[-1:], answers[-1:]
            tokens_BT[row, : len(told)] = torch.tensor(told)
            targets_BT[row, places] = torch.tensor(answers)
        return Batch(tokens_BT, targets_BT)

    def _draw(self, random: Random, length: int) -> list[int]:
        longest: list[int] = []
        for drawn in count():
            told = self._expression(random, length)
            if len(longest) < len(told) <= length and told[-1] == CLOSE:
                longest = told
            # Few levels, or few arguments, may never make so long a list.
            if len(longest) >= length // 4 or (longest and drawn > MAX_DRAWN):
                return longest
        raise AssertionError

    def _expression(self, random: Random, longest: int) -> list[int]:
        """Draw a tree in the order of its words; one that grows beyond `longest` is given up."""
        told: list[int] = []
        missing = [1]  # arguments still to come of each open list; the first is the root's place
        while missing and len(told) <= longest:
            if missing[-1] == 0:
                missing.pop()
                told += [CLOSE] if missing else []
                continue
            missing[-1] -= 1
            if len(missing) < self.config.max_depth and random.random() < OPERATOR:
                told.append(10 + int(4 * random.random()))
                missing.append(2 + int((self.config.max_arguments - 1) * random.random()))
            else:
                told.append(int(10 * random.random()))
        return told


def parse(text: str) -> list[int]:
    """Tokens of an expression in words, with or without the round brackets of the published files.

    Raises:
        ValueError: a word that is none of WORDS.
    """
    return [WORDS.index(word) for word in text.split() if word not in "()"]


def list_values(tokens: Sequence[int]) -> tuple[list[int], list[int]]:
    """Where each list closes, in that order, and its value; the last is that of the whole.

    Args:
        tokens: of one list, from its opening to its closing bracket.

    Raises:
        ValueError: brackets that do not match.
    """
    places, answers = [], []
    stack: list[tuple[int, list[int]]] = [(-1, [])]
    for place, token in enumerate(tokens):
        if token < 10:
            stack[-1][1].append(token)
        elif token < CLOSE:
            stack.append((token, []))
        elif len(stack) > 1:
            operator, arguments = stack.pop()
            answers.append(_OPERATORS[operator - 10](sorted(arguments)))
            places.append(place)
            stack[-1][1].append(answers[-1])
        else:
            raise ValueError(f"tokens: expected a list that is open at {place}, got none")
    if len(stack) > 1 or len(stack[0][1]) != 1:
        raise ValueError("tokens: expected one list that closes at the end")
    return places, answers


def _median(ordered: list[int]) -> int:
    """The mean of the two in the middle, rounded down, where their number is even."""
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2


# Of the arguments in order: MIN, MAX, MED, SM.
_OPERATORS: tuple[Callable[[list[int]], int], ...] = (
    min,
    max,
    _median,
    lambda all_: sum(all_) % 10,
)
