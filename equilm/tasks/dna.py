"""DNA of several species: the next base, or whose it is, asked at the end of a window.

Read from a folder with two FASTA files, plain or `.xz`, whose headers begin ">species|": one for
training, one held out, whose first 45% of each species validate and whose last 45% test. They are
of different regions: species are alike in the same one, so a random split would leak. Next:
`speech.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray

from equilm.data.order import keys_of
from equilm.tasks.examples import shuffled, unpacked
from equilm.tasks.task import IGNORE, SPLITS, Batch, Task, check_position

BASES = "ACGTN"
UNKNOWN = BASES.index("N")
HELD_OUT = 0.45  # of each species validate, and as much tests; what lies between is not used


@dataclass(frozen=True, kw_only=True)
class DNAConfig:
    """Which sequences, and what is asked.

    Args:
        folder: of the two files.
        train: the file of the training split.
        held_out: the file of the other two.
        species: whose sequences, by the headers; none stands for all.
        asked: `next` asks for every next base but unknown ones, `species` whose a window is.

    Source: Nguyen et al. 2023 (HyenaDNA), arXiv 2306.15794: single bases, windows up to 1M.
    """

    kind: Literal["dna"] = "dna"
    folder: Path
    train: str = "ENm001_10species.fa"
    held_out: str = "ENm002_10species.fa"
    species: tuple[str, ...] = ()
    asked: Literal["next", "species"] = "next"


class _Piece(NamedTuple):
    """An unbroken stretch of a species."""

    species: str
    base_N: NDArray[np.uint8]


@final
class DNA(Task):
    """Windows of T bases from everywhere in the sequences, each stretch once in a pass.

    Tokens 0 to 4 are A C G T N; where species are asked, theirs follow, in alphabetic order.

    Args:
        config: which sequences, and what is asked.

    Raises:
        ValueError: a file is missing, or one of the species is in neither file.
    """

    by_row = True

    def __init__(self, config: DNAConfig) -> None:
        self.config = config
        train = _read(config.folder, config.train)
        held_out = _read(config.folder, config.held_out)
        present = sorted({piece.species for piece in train})
        self.species = config.species or tuple(present)
        for name in self.species:
            if name not in present:
                raise ValueError(f"species: expected some of {', '.join(present)}; got {name!r}")
        self._pieces = {
            "train": [piece for piece in train if piece.species in self.species],
            "valid": [piece for name in self.species for piece in _share(held_out, name, 0.0)],
            "test": [
                piece for name in self.species for piece in _share(held_out, name, 1 - HELD_OUT)
            ],
        }
        self.splits = tuple(split for split in SPLITS if self._pieces[split])
        self.vocab_size = len(BASES) + (len(self.species) if config.asked == "species" else 0)
        self.name = f"dna {config.asked}"
        self.asks_at_end = config.asked == "species"

    def batch(self, *, split: str, length: int, batch_size: int, seed: int, index: int) -> Batch:
        """Windows in a shuffled order, moved a little in every pass; see `Task`.

        Raises:
            ValueError: T is longer than all stretches.
        """
        check_position(split=split, length=length, batch_size=batch_size, index=index)
        pieces = self._pieces[split]
        counts = np.array([(piece.base_N.size - 1) // length for piece in pieces])
        if not counts.sum():
            longest = max(piece.base_N.size for piece in pieces) - 1
            raise ValueError(f"length: expected at most {longest} bases in {split}, got {length}")
        ends = counts.cumsum()
        chosen, epochs = shuffled(
            int(ends[-1]), index=index, batch_size=batch_size, seed=seed, split=f"{split} {length}"
        )
        whose = np.searchsorted(ends, chosen, side="right")
        window_BS = np.empty((batch_size, length + 1), dtype=np.int64)
        for row, (number, piece, epoch) in enumerate(zip(chosen, whose, epochs, strict=True)):
            bases = pieces[piece].base_N
            spare = bases.size - 1 - counts[piece] * length
            moved = int(keys_of("dna", seed, int(epoch))[0] % np.uint64(spare + 1))
            start = int(number - ends[piece] + counts[piece]) * length + moved
            window_BS[row] = bases[start : start + length + 1]
        tokens_BS = torch.from_numpy(window_BS)
        targets_BT = tokens_BS[:, 1:].masked_fill(tokens_BS[:, 1:] == UNKNOWN, IGNORE)
        if self.config.asked == "species":
            targets_BT = torch.full_like(targets_BT, IGNORE)
            names = [self.species.index(pieces[piece].species) for piece in whose]
            targets_BT[:, -1] = len(BASES) + torch.tensor(names)
        return Batch(tokens_BS[:, :-1].contiguous(), targets_BT)


def _read(folder: Path, name: str) -> list[_Piece]:
    """The sequences of a FASTA file; whatever is none of ACGT becomes N."""
    code = np.full(256, UNKNOWN, dtype=np.uint8)
    for number, base in enumerate("ACGT"):
        code[ord(base)] = code[ord(base.lower())] = number
    pieces = []
    for told in unpacked(folder, name).split(b">")[1:]:
        header, _, bases = told.partition(b"\n")
        base_N = np.frombuffer(bases.replace(b"\n", b""), dtype=np.uint8)
        pieces.append(_Piece(header.partition(b"|")[0].decode(), code[base_N]))
    return pieces


def _share(pieces: list[_Piece], species: str, start: float) -> list[_Piece]:
    """The stretches of HELD_OUT of all bases of a species, from a share `start` on."""
    own = [piece for piece in pieces if piece.species == species]
    total = sum(piece.base_N.size for piece in own)
    first, last, at, found = int(start * total), int((start + HELD_OUT) * total), 0, []
    for piece in own:
        begin, end = max(0, first - at), min(piece.base_N.size, last - at)
        if end > begin:
            found.append(_Piece(species, piece.base_N[begin:end]))
        at += piece.base_N.size
    return found
