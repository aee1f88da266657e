"""Induction heads: what followed the mark the first time, asked when the mark comes again.

Next: `associative_recall.py`, the same with many pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch

from equilm.tasks.task import IGNORE, Batch, Task, check_position, position_generator


@dataclass(frozen=True, kw_only=True)
class InductionConfig:
    """How many tokens there are.

    Args:
        vocabulary: V, the mark included, which is token 0; at least 3.

    Raises:
        ValueError: too few tokens.

    Source: Gu and Dao 2023, arXiv 2312.00752: 16 tokens, trained at 256, tested at 64 to 1,048,576.
    """

    kind: Literal["induction"] = "induction"
    vocabulary: int = 16

    def __post_init__(self) -> None:
        if self.vocabulary < 3:
            raise ValueError(f"vocabulary: expected an integer >= 3, got {self.vocabulary}")


@final
class Induction(Task):
    """Random tokens, with the mark at one random place and at the end; the last token is asked.

    Args:
        config: how many tokens there are.
    """

    asks_at_end = True

    def __init__(self, config: InductionConfig) -> None:
        self.config = config
        self.vocab_size = config.vocabulary
        self.name = f"induction {config.vocabulary}"

    def batch(self, *, split: str, length: int, batch_size: int, seed: int, index: int) -> Batch:
        """Random rows, each with its answer at the end; see `Task`.

        T is at least 3, and all but the last target are IGNORE.
        """
        check_position(split=split, length=length, batch_size=batch_size, index=index)
        if length < 3:
            raise ValueError(f"length: expected an integer >= 3, got {length}")
        generator = position_generator(split=split, length=length, seed=seed, index=index)
        tokens_BT = torch.randint(1, self.vocab_size, (batch_size, length), generator=generator)
        first_B1 = torch.randint(length - 2, (batch_size, 1), generator=generator)
        targets_BT = torch.full_like(tokens_BT, IGNORE)
        targets_BT[:, -1:] = tokens_BT.gather(1, first_B1 + 1)
        tokens_BT.scatter_(1, first_B1, 0)
        tokens_BT[:, -1] = 0
        return Batch(tokens_BT, targets_BT)
