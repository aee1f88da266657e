"""Languages that a finite automaton reads, and two that need a stack, answered at each prefix.

After Delétang et al., who ask once, at the end of a sequence; here every prefix that has an answer
is asked, so that one sequence teaches all lengths up to its own. They train on at most 40 tokens
and test on 40 to 500. Not here: groups (`word_problem.py`). Next: `stories.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equilm.tasks.task import IGNORE, Batch, Task, check_position, position_generator

Language = Literal[
    "parity", "even_pairs", "cycle", "modular", "modular_brackets", "flip_flop", "dyck"
]
Ints = NDArray[np.int64]

OPENING, CLOSING = 0.25, 0.4  # chances of a bracket in arithmetic, where there may be one
WRITING, READING = 0.1, 0.1  # chances in flip-flop, Liu et al. 2023
MOVES = (0, 1, -1)  # of cycle navigation, by token


@dataclass(frozen=True, kw_only=True)
class RegularConfig:
    """Which language.

    Args:
        language: `parity`: is the number of ones odd; `even_pairs`: do the first and the last bit
            differ, that is, is the number of changes odd; `cycle`: where is one who steps
            0, +1 or −1 on a circle; `modular`: the value of 3+2*4−1 … modulo a number, `*` before
            `+`; `modular_brackets`: the same with brackets, asked of the innermost open
            one; `flip_flop`: the bit last written, asked at each read; `dyck`: which bracket
            may close now.
        size: Places on the circle, the modulus, or kinds of brackets; `None` is 5, or 2 kinds.
            Read by `cycle`, `modular`, `modular_brackets` and `dyck` alone.
        max_depth: Brackets that may be open at once, ≥ 1; read by those with brackets alone.

    Raises:
        ValueError: A size below 2 (below 1 for brackets), or a depth below 1.

    Source: arXiv 2207.02098, regular and deterministic context-free tasks; flip-flop is Liu et
    al. 2023, arXiv 2306.00946.
    """

    kind: Literal["regular"] = "regular"
    language: Language = "parity"
    size: int | None = None
    max_depth: int = 8

    def __post_init__(self) -> None:
        least = 1 if self.language == "dyck" else 2
        if self.size is not None and self.size < least:
            raise ValueError(f"size: expected an integer >= {least}, got {self.size}")
        if self.max_depth < 1:
            raise ValueError(f"max_depth: expected an integer >= 1, got {self.max_depth}")

    @property
    def order(self) -> int:
        """The size that holds."""
        return self.size or (2 if self.language == "dyck" else 5)


class _Row(NamedTuple):
    """A language: its words, and how to draw a batch of T x B tokens and targets."""

    words: Callable[[RegularConfig], tuple[str, ...]]
    draw: Callable[[RegularConfig, tuple[int, int], torch.Generator], tuple[Tensor, Tensor]]


@final
class Regular(Task):
    """Random words of a language, each prefix with its answer.

    Args:
        config: The language.
    """

    def __init__(self, config: RegularConfig) -> None:
        self.config = config
        self.words = _LANGUAGES[config.language].words(config)
        self.vocab_size = len(self.words)
        self.name: str = config.language
        if config.language in _SIZED:
            self.name += f" {config.order}"

    def batch(self, *, split: str, length: int, batch_size: int, seed: int, index: int) -> Batch:
        """Random words and the answers to their prefixes.

        Args:
            split: one of SPLITS.
            length: T, tokens a row, at least 1.
            batch_size: B, rows, at least 1.
            seed: any integer.
            index: position in the stream, at least 0.

        Returns:
            A Batch; IGNORE where a prefix has no answer, as after an operator.

        Raises:
            ValueError: an argument outside its range.
        """
        check_position(split=split, length=length, batch_size=batch_size, index=index)
        generator = position_generator(split=split, length=length, seed=seed, index=index)
        draw = _LANGUAGES[self.config.language].draw
        tokens_TB, targets_TB = draw(self.config, (length, batch_size), generator)
        return Batch(tokens_TB.T.contiguous(), targets_TB.T.contiguous())


def _bits(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=generator)


def _parity(
    config: RegularConfig, shape: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    tokens_TB = _bits(shape, generator)
    return tokens_TB, tokens_TB.cumsum(0) % 2


def _even_pairs(
    config: RegularConfig, shape: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    tokens_TB = _bits(shape, generator)
    return tokens_TB, tokens_TB ^ tokens_TB[:1]


def _cycle(
    config: RegularConfig, shape: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    tokens_TB = torch.randint(len(MOVES), shape, generator=generator)
    return tokens_TB, torch.tensor(MOVES)[tokens_TB].cumsum(0) % config.order


def _flip_flop(
    config: RegularConfig, shape: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Pairs of instruction and bit; the first writes, and the bit of a read is the one written."""
    length, rows = shape
    pairs = -(-length // 2)
    chance_KB = torch.rand(pairs, rows, generator=generator)
    reads_KB = (chance_KB >= WRITING) & (chance_KB < WRITING + READING)
    writes_KB, bits_KB = chance_KB < WRITING, _bits((pairs, rows), generator)
    writes_KB[0], reads_KB[0] = True, False
    when_KB = torch.arange(pairs)[:, None].expand_as(bits_KB).masked_fill(~writes_KB, 0)
    stored_KB = bits_KB.gather(0, when_KB.cummax(0).values)
    bits_KB = torch.where(reads_KB, stored_KB, bits_KB)
    orders_KB = torch.full_like(bits_KB, 4).masked_fill_(writes_KB, 2).masked_fill_(reads_KB, 3)
    tokens_TB = torch.stack([orders_KB, bits_KB], dim=1).flatten(0, 1)[:length]
    asked_KB = stored_KB.masked_fill(~reads_KB, IGNORE)
    nothing_KB = torch.full_like(asked_KB, IGNORE)
    return tokens_TB, torch.stack([asked_KB, nothing_KB], dim=1).flatten(0, 1)[:length]


def _dyck(
    config: RegularConfig, shape: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Open or close with equal chance where both may be; the answer to an empty stack is 2n."""
    (length, rows), kinds = shape, config.order
    opens_TB = (torch.rand(shape, generator=generator) < 0.5).numpy()
    kind_TB = torch.randint(kinds, shape, generator=generator).numpy()
    tokens_TB, targets_TB = (np.empty(shape, dtype=np.int64) for _ in range(2))
    stack_BK = np.full((rows, config.max_depth + 1), 2 * kinds)
    depth_B, row_B = np.zeros(rows, dtype=np.int64), np.arange(rows)
    for t in range(length):
        open_B = (opens_TB[t] | (depth_B == 0)) & (depth_B < config.max_depth)
        tokens_TB[t] = np.where(open_B, kind_TB[t], stack_BK[row_B, depth_B])
        depth_B = depth_B + np.where(open_B, 1, -1)
        # What lies above the top is written before it is read.
        stack_BK[row_B[open_B], depth_B[open_B]] = kinds + kind_TB[t][open_B]
        targets_TB[t] = stack_BK[row_B, depth_B]
    return torch.from_numpy(tokens_TB), torch.from_numpy(targets_TB)


def _modular(
    config: RegularConfig, shape: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    return _arithmetic(config.order, 0, shape, generator)


def _modular_brackets(
    config: RegularConfig, shape: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    return _arithmetic(config.order, config.max_depth, shape, generator)


def _arithmetic(
    modulus: int, max_depth: int, shape: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw T x B tokens of a sum of products, and the value after each operand.

    A bracket's value so far is total + term, where a digit d makes term = factor · d; `*` makes
    factor = term, `+` and `−` add the term to the total and make factor ±1.
    """
    length, rows = shape
    chance_TB = torch.rand(shape, generator=generator).numpy()
    digit_TB = torch.randint(modulus, shape, generator=generator).numpy()
    operator_TB = torch.randint(3, shape, generator=generator).numpy()
    tokens_TB, targets_TB = (np.empty(shape, dtype=np.int64) for _ in range(2))
    total_BK = np.zeros((rows, max_depth + 1), dtype=np.int64)
    factor_BK = np.ones_like(total_BK)
    term_B, depth_B, row_B = (np.zeros(rows, dtype=np.int64) for _ in range(3))
    row_B, wants_B = np.arange(rows), np.ones(rows, dtype=bool)
    for t in range(length):
        opens_B = wants_B & (depth_B < max_depth) & (chance_TB[t] < OPENING)
        closes_B = ~wants_B & (depth_B > 0) & (chance_TB[t] < CLOSING)
        digits_B = wants_B & ~opens_B
        operates_B = ~wants_B & ~closes_B
        total_B, factor_B = total_BK[row_B, depth_B], factor_BK[row_B, depth_B]
        token_B = np.where(digits_B, digit_TB[t], modulus + operator_TB[t])
        token_B = np.where(opens_B, modulus + 3, np.where(closes_B, modulus + 4, token_B))
        value_B = np.where(closes_B, total_B + term_B, digit_TB[t])
        depth_B = depth_B + opens_B - closes_B
        _operate(total_BK, factor_BK, term_B, (row_B, depth_B, operates_B), operator_TB[t])
        total_BK[row_B[opens_B], depth_B[opens_B]] = 0
        factor_BK[row_B[opens_B], depth_B[opens_B]] = 1
        done_B = digits_B | closes_B
        outer_B = np.where(closes_B, factor_BK[row_B, depth_B], factor_B)
        term_B = np.where(done_B, outer_B * value_B % modulus, term_B)
        tokens_TB[t], wants_B = token_B, ~done_B
        answer_B = (total_BK[row_B, depth_B] + term_B) % modulus
        targets_TB[t] = np.where(done_B, answer_B, IGNORE)
    return torch.from_numpy(tokens_TB), torch.from_numpy(targets_TB)


def _operate(
    total_BK: Ints,
    factor_BK: Ints,
    term_B: Ints,
    at: tuple[Ints, Ints, NDArray[np.bool_]],
    operator_B: Ints,
) -> None:
    """Apply `+`, `−` or `*` (0, 1, 2) to the rows that have one, in place."""
    row_B, depth_B, operates_B = at
    row_B, depth_B = row_B[operates_B], depth_B[operates_B]
    term_B, operator_B = term_B[operates_B], operator_B[operates_B]
    multiplies_B = operator_B == 2
    total_BK[row_B, depth_B] += np.where(multiplies_B, 0, term_B)
    factor_BK[row_B, depth_B] = np.where(multiplies_B, term_B, 1 - 2 * operator_B)


def _digits(number: int) -> tuple[str, ...]:
    return tuple(map(str, range(number)))


def _brackets(config: RegularConfig) -> tuple[str, ...]:
    kinds = range(config.order)
    return (*(f"({kind}" for kind in kinds), *(f"){kind}" for kind in kinds), "none")


_SIZED = ("cycle", "modular", "modular_brackets", "dyck")
_LANGUAGES: dict[Language, _Row] = {
    "parity": _Row(lambda _: _digits(2), _parity),
    "even_pairs": _Row(lambda _: _digits(2), _even_pairs),
    # The moves 0, +1, −1 are the tokens 0, 1, 2; the places share their numbers.
    "cycle": _Row(lambda config: _digits(max(config.order, len(MOVES))), _cycle),
    "modular": _Row(lambda config: (*_digits(config.order), *"+-*"), _modular),
    "modular_brackets": _Row(lambda config: (*_digits(config.order), *"+-*()"), _modular_brackets),
    "flip_flop": _Row(lambda _: (*_digits(2), "write", "read", "ignore"), _flip_flop),
    "dyck": _Row(_brackets, _dyck),
}
