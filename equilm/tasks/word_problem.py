"""The word problem of a monoid: read elements, answer at each token with the product so far.

Z2 is parity, Z_n is addition modulo n, S5 and A5 are the NC¹-complete cases. Not here: the
monoids themselves (`groups.py`) and the meaning of a batch (`task.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from equilm.tasks.groups import canonical_name, parse
from equilm.tasks.task import Batch, Task, check_position, position_generator


@dataclass(frozen=True, kw_only=True)
class WordProblemConfig:
    """Which monoid, and how often a token is its identity ("easy").

    Args:
        group: a name that `groups.parse` takes, such as "S3", "Z2" or "A5xM4".
        identity_probability: chance p that a token is the identity, 0 <= p < 1, the others being
            equally likely; None draws all elements alike, so the identity has 1/Q.

    Raises:
        ValueError: no such group, or p out of range.

    Source: arXiv 2502.07827, state tracking. Its generator draws the rest over the whole group,
    so its p is our p + (1 - p)/|G|, and in G x M4 it applies p to G alone, M4 being uniform.
    """

    kind: Literal["word_problem"] = "word_problem"
    group: str = "S3"
    identity_probability: float | None = None

    def __post_init__(self) -> None:
        canonical_name(self.group)
        chance = self.identity_probability
        if chance is not None and not 0 <= chance < 1:
            raise ValueError(f"identity_probability: expected None or 0 <= p < 1, got {chance}")


@final
class WordProblem(Task):
    """target_j = token_0 · token_1 · … · token_j, aligned with the input; every token is asked.

    Args:
        config: the monoid and the share of identities.
    """

    follows = True

    def __init__(self, config: WordProblemConfig) -> None:
        self.config = config
        self.monoid = parse(config.group)
        self.vocab_size = self.monoid.order
        self.name = f"word_problem {self.monoid.name}"
        if config.identity_probability is not None:
            self.name += f" p={config.identity_probability:g}"

    def batch(self, *, split: str, length: int, batch_size: int, seed: int, index: int) -> Batch:
        """Random elements and their prefix products.

        Args:
            split: one of SPLITS.
            length: T, tokens a row, at least 1.
            batch_size: B, rows, at least 1.
            seed: any integer.
            index: position in the stream, at least 0.

        Returns:
            A Batch without IGNORE.

        Raises:
            ValueError: an argument outside its range.
        """
        check_position(split=split, length=length, batch_size=batch_size, index=index)
        generator = position_generator(split=split, length=length, seed=seed, index=index)
        tokens_BT = self._draw((batch_size, length), generator)
        return Batch(tokens_BT, prefix_products(tokens_BT, self.monoid.table_QQ))

    def follow(self, batch: Batch, known_B: Tensor) -> tuple[Batch, Tensor]:
        """See `Task`; known is the product so far, and 0 is the identity."""
        targets_BT = self.monoid.table_QQ[known_B[:, None], batch.targets_BT]
        return Batch(batch.tokens_BT, targets_BT), targets_BT[:, -1]

    def _draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        chance = self.config.identity_probability
        if chance is None:
            return torch.randint(self.vocab_size, shape, generator=generator)
        tokens_BT = torch.randint(self.vocab_size - 1, shape, generator=generator)
        tokens_BT += tokens_BT >= self.monoid.identity
        easy_BT = torch.rand(shape, generator=generator) < chance
        return tokens_BT.masked_fill_(easy_BT, self.monoid.identity)


def prefix_products(tokens_BT: Tensor, table_QQ: Tensor) -> Tensor:
    """p_j = x_0 · x_1 · … · x_j, by doubling: ⌈log2 T⌉ table look-ups over all tokens.

    Args:
        tokens_BT: int64 elements in 0..Q-1.
        table_QQ: int64 Cayley table, table_QQ[a, b] = a·b, associative.

    Returns:
        int64 products, B x T.

    Source: Hillis and Steele, Data parallel algorithms (1986).
    """
    order = table_QQ.shape[0]
    flat = table_QQ.flatten()
    products_BT = tokens_BT.clone()
    span = 1
    while span < tokens_BT.shape[1]:
        # Before this round p_j covers the last `span` tokens up to j, after it twice as many.
        pairs = products_BT[:, :-span] * order + products_BT[:, span:]
        products_BT[:, span:] = flat[pairs]
        span *= 2
    return products_BT
