"""What a task is: batches as a pure function of their position, one loss, one way to score.

Not here: models, devices, metrics over many batches. Next: `word_problem.py`, the first task.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.config import nearest

IGNORE = -100
SPLITS = ("train", "valid", "test")


class Batch(NamedTuple):
    """Tokens and their targets, both int64; a target is IGNORE where nothing is asked."""

    tokens_BT: Tensor
    targets_BT: Tensor


class Scores(NamedTuple):
    """Per token: answered right (bool), asked at all (bool), loss in nats (float32, 0 unasked)."""

    correct_BT: Tensor
    counted_BT: Tensor
    loss_BT: Tensor


class Task(Protocol):
    """A source of batches; holds no position, so resuming is asking for the next index."""

    name: str
    vocab_size: int
    splits: tuple[str, ...] = SPLITS
    # As an input it opens a document, before which nothing is remembered; None: there are none.
    reset_token: int | None = None
    # Whether row r of a batch is a function of index · batch_size + r, so that a process of several
    # may ask for its own rows alone.
    by_row: bool = False
    # Whether rows may go on after others: `follow`.
    follows: bool = False
    # Whether a sequence asks what its prefixes do not, so that each length is measured by itself.
    asks_at_end: bool = False

    def batch(self, *, split: str, length: int, batch_size: int, seed: int, index: int) -> Batch:
        """The batch at (split, length, batch_size, seed, index): a pure function of the five.

        Args:
            split: "train", "valid" or "test"; no stream of random numbers serves two of them.
            length: T, tokens a row, at least 1.
            batch_size: B, rows, at least 1.
            seed: any integer.
            index: position in the stream, at least 0.

        Returns:
            A Batch on the CPU.

        Raises:
            ValueError: an argument outside its range.
        """
        ...

    def follow(self, batch: Batch, known_B: Tensor) -> tuple[Batch, Tensor]:
        """The batch, each row of which goes on after another row; for a task that `follows`.

        Args:
            batch: as `batch` gave it.
            known_B: int64, what this gave of the row before; 0 for a row that goes on after none.

        Returns:
            The batch with targets that mind the past, and what is to be known of it from here on.

        Raises:
            ValueError: rows of this task stand alone.
        """
        raise ValueError(f"{self.name}: expected rows that begin anew, got some that go on")


def check_position(*, split: str, length: int, batch_size: int, index: int) -> None:
    """Refuse a position that no stream has.

    Args:
        split: one of SPLITS.
        length: T, at least 1.
        batch_size: B, at least 1.
        index: at least 0.

    Raises:
        ValueError: names the argument, what was expected and what was given.
    """
    if split not in SPLITS:
        raise ValueError(
            f"split: expected one of {', '.join(SPLITS)}; got {split!r}, "
            f"nearest is {nearest(split, SPLITS)!r}"
        )
    smallest = {"length": (length, 1), "batch_size": (batch_size, 1), "index": (index, 0)}
    for name, (value, least) in smallest.items():
        if value < least:
            raise ValueError(f"{name}: expected an integer >= {least}, got {value}")


def position_generator(*, split: str, length: int, seed: int, index: int) -> torch.Generator:
    """Seed a generator with 4·hash(seed, split, length, index) + number of the split.

    Args:
        split: one of SPLITS.
        length: T, tokens a row.
        seed: any integer.
        index: position in the stream.

    Returns:
        A CPU generator of its own, the same on every platform.
    """
    digest = hashlib.blake2b(f"{seed} {split} {length} {index}".encode(), digest_size=8).digest()
    # The CPU generator keeps only the low 32 bits of its seed, so a 64-bit hash alone would let
    # two splits meet by chance; with the split in the lowest bits they cannot.
    hashed = int.from_bytes(digest, "little") % 2**30
    return torch.Generator().manual_seed(4 * hashed + SPLITS.index(split))


def cross_entropy_sum(logits_BTV: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Σ log(1 / softmax(logits)[target]) over the targets asked, and how many there are.

    Summed and not averaged: divide by the global count of targets, over all ranks and microbatches.

    Args:
        logits_BTV: scores of the V tokens, any floating type; computed in float32.
        targets_BT: int64 in 0..V-1, or IGNORE.

    Returns:
        The sum in nats (float32 scalar, differentiable) and the count (int64 scalar).

    Raises:
        ValueError: the shapes do not belong together.
    """
    losses_BT = _token_losses(logits_BTV, targets_BT)
    return losses_BT.sum(), (targets_BT != IGNORE).sum()


@torch.no_grad()
def scores(logits_BTV: Tensor, batch: Batch) -> Scores:
    """Mark argmax(logits) against the targets, token by token, without gradient.

    Args:
        logits_BTV: scores of the V tokens, any floating type.
        batch: the Batch that was answered, on the same device.

    Returns:
        Scores, false and 0 where the target is IGNORE.

    Raises:
        ValueError: the shapes do not belong together.
    """
    losses_BT = _token_losses(logits_BTV, batch.targets_BT)
    counted_BT = batch.targets_BT != IGNORE
    correct_BT = (logits_BTV.argmax(-1) == batch.targets_BT) & counted_BT
    return Scores(correct_BT, counted_BT, losses_BT)


def _token_losses(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    if logits_BTV.shape[:-1] != targets_BT.shape:
        raise ValueError(
            f"logits_BTV: expected shape (*{tuple(targets_BT.shape)}, V) to match the targets, "
            f"got {tuple(logits_BTV.shape)}"
        )
    losses = F.cross_entropy(
        logits_BTV.float().flatten(0, -2),
        targets_BT.flatten(),
        ignore_index=IGNORE,
        reduction="none",
    )
    return losses.view(targets_BT.shape)
