"""Sequential and permuted MNIST: a picture pixel by pixel, its digit asked at the last one.

Read from a folder with `{train,test}_{images,labels}_uint8.npy`, plain or `.xz`. Next: `dna.py`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.tasks.examples import shuffled, unpacked
from equilm.tasks.task import IGNORE, Batch, Task, check_position

LEVELS = 256  # of grey, and the tokens; the digits 0 to 9 are the first ten
NUM_VALID = 5000  # pictures of the training files that are kept for validation, at most a twelfth
PERMUTATION_SEED = 92_916  # of the one permutation that all rows share, whatever the run's seed


@dataclass(frozen=True, kw_only=True)
class PixelsConfig:
    """Where the pictures lie and in which order their pixels are read.

    Args:
        folder: with images (M, H, W) and labels (M), as NumPy arrays of bytes.
        order: `rows` from top left to bottom right, `permuted` in one random order.

    Source: Le et al. 2015, arXiv 1504.00941.
    """

    kind: Literal["pixels"] = "pixels"
    folder: Path
    order: Literal["rows", "permuted"] = "rows"


@final
class Pixels(Task):
    """A token a pixel, its grey; where T is too short, the picture is shrunk to ⌊√T⌋² pixels.

    Args:
        config: the folder and the order.

    Raises:
        ValueError: a file is missing.
    """

    by_row = True
    asks_at_end = True

    def __init__(self, config: PixelsConfig) -> None:
        self.config = config
        self.vocab_size = LEVELS
        self.name = "pixels" if config.order == "rows" else "pixels permuted"
        images_MHW, labels_M = _load(config.folder, "train")
        order_M = np.random.Generator(np.random.PCG64(0)).permutation(len(labels_M))
        valid = min(NUM_VALID, len(order_M) // 12)
        kept = {"train": order_M[: len(order_M) - valid], "valid": order_M[len(order_M) - valid :]}
        self._pictures = {name: (images_MHW[rows], labels_M[rows]) for name, rows in kept.items()}
        self._pictures["test"] = _load(config.folder, "test")
        self._order = lru_cache(maxsize=8)(self._make_order)

    def batch(self, *, split: str, length: int, batch_size: int, seed: int, index: int) -> Batch:
        """Pictures in a shuffled order, each once in a pass; see `Task`.

        Black follows a picture that is shorter than T; all but its last target are IGNORE.
        """
        check_position(split=split, length=length, batch_size=batch_size, index=index)
        images_MHW, labels_M = self._pictures[split]
        rows, _ = shuffled(
            len(labels_M), index=index, batch_size=batch_size, seed=seed, split=split
        )
        images_BHW = torch.from_numpy(images_MHW[rows])
        side = min(images_BHW.shape[1], isqrt(length))
        if side < images_BHW.shape[1]:
            images_BHW = F.adaptive_avg_pool2d(images_BHW.float(), side).round()
        pixels_BP = images_BHW.long().flatten(1)[:, self._order(side**2)]
        tokens_BT = F.pad(pixels_BP, (0, length - side**2))
        targets_BT = torch.full_like(tokens_BT, IGNORE)
        targets_BT[:, side**2 - 1] = torch.from_numpy(labels_M[rows].astype(np.int64))
        return Batch(tokens_BT, targets_BT)

    def _make_order(self, pixels: int) -> Tensor:
        if self.config.order == "rows":
            return torch.arange(pixels)
        return torch.randperm(pixels, generator=torch.Generator().manual_seed(PERMUTATION_SEED))


def _load(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    images_MHW, labels_M = (
        np.load(io.BytesIO(unpacked(folder, f"{split}_{part}_uint8.npy")))
        for part in ("images", "labels")
    )
    return images_MHW, labels_M
