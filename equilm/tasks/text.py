"""Text: predict the next token of prepared documents, packed into rows without a gap.

The end token stands between two documents and belongs to both: as a target it ends the first, as
an input it opens the second, whose state begins anew there (`reset_token`). So every token of a
document is predicted from that document alone, the first one from the end token only; no target
need be ignored, and none is counted twice. Not here: how the tokens were made (`equilm/data`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch

from equilm.data import Windows, joined, open_folder
from equilm.tasks.task import SPLITS, Batch, Task, check_position


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Which prepared folders, and what happens between documents.

    Args:
        sources: Folders that `equilm data prepare` wrote with one tokenizer.
        weights: Share of the sequences from each folder, in any unit; None reads all as one, so
            that their epochs end together.
        boundaries: `reset` lets no document see another; `carry` runs rows through as if they were
            one text, as in the published run.
    """

    kind: Literal["text"] = "text"
    sources: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    boundaries: Literal["reset", "carry"] = "reset"

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources: expected one folder or more, got none")
        if self.weights is not None and len(self.weights) != len(self.sources):
            raise ValueError(
                f"weights: expected {len(self.sources)} numbers, as there are sources, "
                f"got {len(self.weights)}"
            )


@final
class Text(Task):
    """target_j = token_{j+1}; the last target is the first token of the next window.

    Args:
        config: The folders.

    Raises:
        ValueError: If one is not prepared, or by another tokenizer than the first.
    """

    by_row = True

    def __init__(self, config: TextConfig) -> None:
        self.config = config
        self.folders = [open_folder(Path(source)) for source in config.sources]
        first = self.folders[0]
        for other in self.folders:
            if (other.digest, other.end_token) != (first.digest, first.end_token):
                raise ValueError(
                    f"sources: expected one tokenizer, got {first.tokenizer} in {first.path} and "
                    f"{other.tokenizer} in {other.path}"
                )
        self.name = f"text {'+'.join(folder.path.resolve().name for folder in self.folders)}"
        self.vocab_size = first.vocab_size
        self.reset_token = first.end_token if config.boundaries == "reset" else None
        self.splits = tuple(
            split for split in SPLITS if all(split in folder.splits for folder in self.folders)
        )
        self._windows = lru_cache(maxsize=8)(self._make_windows)

    def batch(self, *, split: str, length: int, batch_size: int, seed: int, index: int) -> Batch:
        """The sequences of step `index`; those of an epoch are all different.

        Args:
            split: One of `splits`.
            length: T, tokens a row, at least 1.
            batch_size: B, rows, at least 1.
            seed: Of the order; any integer.
            index: The step, at least 0.

        Returns:
            A Batch without IGNORE. A row of any batch size is a function of index · B + row.

        Raises:
            ValueError: An argument outside its range, a split that a folder lacks, a shard that is
                missing or cut short.
        """
        check_position(split=split, length=length, batch_size=batch_size, index=index)
        numbers = np.arange(index * batch_size, (index + 1) * batch_size, dtype=np.uint64)
        tokens_BS = torch.from_numpy(self._windows(split, length, seed).read(numbers))
        return Batch(tokens_BS[:, :-1].contiguous(), tokens_BS[:, 1:].contiguous())

    def _make_windows(self, split: str, length: int, seed: int) -> Windows:
        streams = [folder.stream(split) for folder in self.folders]
        if self.config.weights is None:
            return Windows([joined(streams)], (1.0,), length=length, seed=seed)
        return Windows(streams, self.config.weights, length=length, seed=seed)
