"""Multi-query associative recall (MQAR): pairs of key and value, then each key once more.

Next: `list_ops.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch

from equilm.tasks.task import IGNORE, Batch, Task, check_position, position_generator


@dataclass(frozen=True, kw_only=True)
class AssociativeRecallConfig:
    """How many pairs, of how many tokens.

    Args:
        pairs: K, keys of a row, each asked once, at least 1.
        vocabulary: V: the first half are keys, the second half values; more than 2K.
        power: The a of the gap before a query, whose chance falls as gap^(a − 1); > 0.

    Raises:
        ValueError: a number out of range.

    Source: Arora et al. 2023 (Zoology), arXiv 2312.04927: V = 8,192, a = 0.01, and random tokens
    between the queries.
    """

    kind: Literal["associative_recall"] = "associative_recall"
    pairs: int = 8
    vocabulary: int = 8192
    power: float = 0.01

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise ValueError(f"pairs: expected an integer >= 1, got {self.pairs}")
        if self.vocabulary // 2 < self.pairs + 1:
            raise ValueError(
                f"vocabulary: expected an integer >= {2 * self.pairs + 2} for {self.pairs} pairs, "
                f"got {self.vocabulary}"
            )
        if not self.power > 0:
            raise ValueError(f"power: expected a number > 0, got {self.power}")


@final
class AssociativeRecall(Task):
    """K pairs "key value", then noise in which each key comes again, where its value is asked.

    No key and no value comes twice in the pairs. Noise is any token, keys of the row excepted by
    nothing, as published; a query stands two tokens or a multiple of it behind the pairs.

    Args:
        config: how many pairs, of how many tokens.
    """

    asks_at_end = True

    def __init__(self, config: AssociativeRecallConfig) -> None:
        self.config = config
        self.vocab_size = config.vocabulary
        self.name = f"mqar {config.pairs} of {config.vocabulary}"

    def batch(self, *, split: str, length: int, batch_size: int, seed: int, index: int) -> Batch:
        """Random pairs and queries; see `Task`.

        T is at least 4K, and the targets of all but the K queries are IGNORE.
        """
        check_position(split=split, length=length, batch_size=batch_size, index=index)
        pairs, half = self.config.pairs, self.vocab_size // 2
        if length < 4 * pairs:
            raise ValueError(f"length: expected an integer >= {4 * pairs}, got {length}")
        generator = position_generator(split=split, length=length, seed=seed, index=index)
        tokens_BT = torch.randint(self.vocab_size, (batch_size, length), generator=generator)
        key_BK = torch.rand(batch_size, half, generator=generator).topk(pairs).indices
        value_BK = half + torch.rand(batch_size, half, generator=generator).topk(pairs).indices
        tokens_BT[:, : 2 * pairs] = torch.stack([key_BK, value_BK], dim=-1).flatten(1)
        # Drawing without replacement by weight p: the K greatest of log(u) / p.
        gap_G = torch.arange(1, (length - 2 * pairs) // 2 + 1)
        weight_G = gap_G.double() ** (self.config.power - 1)
        chance_BG = torch.rand(batch_size, len(gap_G), generator=generator, dtype=torch.float64)
        place_BK = 2 * pairs + 2 * (chance_BG.log() / weight_G).topk(pairs).indices
        tokens_BT.scatter_(1, place_BK, key_BK)
        targets_BT = torch.full_like(tokens_BT, IGNORE).scatter_(1, place_BK, value_BK)
        return Batch(tokens_BT, targets_BT)
