"""Copying: say again, in their order, some items that were told at the start or amid noise.

Told at the start, a fixed delay is enough; amid noise (selective copying) only a model that chooses
by content what to keep can do it. Next: `induction.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch

from equilm.tasks.task import IGNORE, Batch, Task, check_position, position_generator


@dataclass(frozen=True, kw_only=True)
class CopyingConfig:
    """What is told, and where.

    Args:
        items: K, how many are told and asked for, at least 1.
        vocabulary: Tokens in all: 0 is noise, 1 asks, the others are items; at least 3.
        placed: `start` tells the items first, in a row; `scattered` at random places.

    Raises:
        ValueError: a number out of range.

    Source: Arjovsky et al. 2016, arXiv 1511.06464 (start); Gu and Dao 2023, arXiv 2312.00752
    (scattered: 16 items of 16 tokens over 4,096).
    """

    kind: Literal["copying"] = "copying"
    items: int = 16
    vocabulary: int = 18
    placed: Literal["start", "scattered"] = "scattered"

    def __post_init__(self) -> None:
        for name, least in (("items", 1), ("vocabulary", 3)):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name}: expected an integer >= {least}, got {value}")


@final
class Copying(Task):
    """T − K tokens of noise and K items, then K times the asking token: the j-th wants item j.

    Args:
        config: how many items, of what, and where.
    """

    asks_at_end = True

    def __init__(self, config: CopyingConfig) -> None:
        self.config = config
        self.vocab_size = config.vocabulary
        kind = "selective_copying" if config.placed == "scattered" else "copying"
        self.name = f"{kind} {config.items} of {config.vocabulary - 2}"

    def batch(self, *, split: str, length: int, batch_size: int, seed: int, index: int) -> Batch:
        """Random items at their places, asked for at the end; see `Task`.

        T is at least 2K, and all but the last K targets are IGNORE.
        """
        check_position(split=split, length=length, batch_size=batch_size, index=index)
        items, told = self.config.items, length - self.config.items
        if told < items:
            raise ValueError(f"length: expected an integer >= {2 * items}, got {length}")
        generator = position_generator(split=split, length=length, seed=seed, index=index)
        item_BK = torch.randint(2, self.vocab_size, (batch_size, items), generator=generator)
        tokens_BT = torch.zeros(batch_size, length, dtype=torch.int64)
        place_BK = torch.arange(items).expand(batch_size, items)
        if self.config.placed == "scattered":
            chance_BS = torch.rand(batch_size, told, generator=generator)
            place_BK = chance_BS.topk(items).indices.sort().values
        tokens_BT.scatter_(1, place_BK, item_BK)
        tokens_BT[:, told:] = 1
        targets_BT = torch.full_like(tokens_BT, IGNORE)
        targets_BT[:, told:] = item_BK
        return Batch(tokens_BT, targets_BT)
