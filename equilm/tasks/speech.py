"""Speech, sample by sample: the next one of a spoken digit, as one of 256 levels.

Read from a folder with `fsdd_8khz_mono_int16le.raw` (plain or `.xz`) and `index.tsv`. Next:
`equilm/decode/speech.py`, which lets a model speak.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equilm.data.order import keys_of
from equilm.tasks.examples import shuffled, unpacked
from equilm.tasks.task import IGNORE, SPLITS, Batch, Task, check_position

SAMPLE_RATE = 8000  # samples a second
LEVELS, MU = 256, 255.0  # of the μ-law
NUM_DIGITS = 10
FILE = "fsdd_8khz_mono_int16le.raw"
VALID_TAKE = 5  # of the training takes, kept for validation


@dataclass(frozen=True, kw_only=True)
class SpeechConfig:
    """Where the recordings lie.

    Args:
        folder: of all samples in one file, and `index.tsv` (offset_samples, num_samples, digit,
            take, split, and more that is not read).

    Source: Free Spoken Digit Dataset; 8-bit μ-law and bits a sample as in Goel et al. 2022
    (SaShiMi), arXiv 2202.09729.
    """

    kind: Literal["speech"] = "speech"
    folder: Path


class _Recording(NamedTuple):
    offset: int
    size: int
    digit: int


@final
class Speech(Task):
    """A token that names the digit (256 + digit), then samples; each target is the next sample.

    Args:
        config: the folder.

    Raises:
        ValueError: a file is missing.
    """

    by_row = True

    def __init__(self, config: SpeechConfig) -> None:
        self.config, self.name = config, "speech"
        self.vocab_size = LEVELS + NUM_DIGITS
        wave_N = np.frombuffer(unpacked(config.folder, FILE), dtype="<i2")
        self._level_N = encode(torch.from_numpy(wave_N / 32768)).to(torch.uint8).numpy()
        self._recordings: dict[str, list[_Recording]] = {split: [] for split in SPLITS}
        index = io.StringIO(unpacked(config.folder, "index.tsv").decode())
        for line in csv.DictReader(index, delimiter="\t"):
            split = "test" if line["split"] == "test" else "train"
            if split == "train" and int(line["take"]) == VALID_TAKE:
                split = "valid"
            place = (int(line["offset_samples"]), int(line["num_samples"]), int(line["digit"]))
            self._recordings[split].append(_Recording(*place))

    def batch(self, *, split: str, length: int, batch_size: int, seed: int, index: int) -> Batch:
        """A recording a row, T samples of it from anywhere, or all and then IGNORE; see `Task`."""
        check_position(split=split, length=length, batch_size=batch_size, index=index)
        recordings = self._recordings[split]
        chosen, epochs = shuffled(
            len(recordings), index=index, batch_size=batch_size, seed=seed, split=split
        )
        targets_BT = torch.full((batch_size, length), IGNORE)
        first_B1 = torch.empty(batch_size, 1, dtype=torch.int64)
        for row, (number, epoch) in enumerate(zip(chosen, epochs, strict=True)):
            one = recordings[number]
            spare = max(0, one.size - length)
            moved = int(keys_of("speech", seed, int(epoch), int(number))[0] % np.uint64(spare + 1))
            first_B1[row] = LEVELS + one.digit
            samples = self._samples(one, moved, length)
            targets_BT[row, : samples.size] = torch.from_numpy(samples)
        known_BT = targets_BT.where(targets_BT != IGNORE, int(encode(torch.zeros(()))))
        return Batch(torch.cat([first_B1, known_BT[:, :-1]], dim=1), targets_BT)

    def _samples(self, one: _Recording, start: int, length: int) -> NDArray[np.int64]:
        begin = one.offset + start
        return self._level_N[begin : begin + min(length, one.size - start)].astype(np.int64)


def encode(wave: Tensor) -> Tensor:
    """⌊(1 + sign(w) ln(1 + μ|w|) / ln(1 + μ)) / 2 · 255 + ½⌋: levels 0..255 of a wave in [−1, 1].

    Source: ITU-T G.711, without its approximation by straight lines.
    """
    pressed = wave.sign() * torch.log1p(MU * wave.abs().clamp(max=1)) / np.log1p(MU)
    return ((pressed + 1) / 2 * (LEVELS - 1) + 0.5).floor().long()


def decode(levels: Tensor) -> Tensor:
    """Return the wave of these levels, in [−1, 1], float32: what `encode` takes there again."""
    pressed = 2 * levels.double() / (LEVELS - 1) - 1
    return (pressed.sign() * torch.expm1(pressed.abs() * np.log1p(MU)) / MU).float()
