"""Small corpora made here, in every format."""

import gzip
import json
import lzma
import random
from collections.abc import Sequence
from pathlib import Path

from equilm.data import PrepareConfig, prepare
from equilm.data.prepare import Progress

WORDS = ("the", "cat", "sat", "on", "a", "mat", "über", "文字", "\n", "end")


def texts(count: int, *, seed: int = 0, longest: int = 40) -> list[str]:
    """Return random texts, all different."""
    draw = random.Random(seed)
    return [
        f"{seed}-{number} " + " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))
        for number in range(count)
    ]


def lines(documents: Sequence[str]) -> bytes:
    """Return documents as JSON lines."""
    return "".join(json.dumps({"text": one}) + "\n" for one in documents).encode()


def write(path: Path, documents: Sequence[str]) -> str:
    """Write JSON lines, packed as the suffix says, and return the path."""
    data = lines(documents)
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".xz":
        data = lzma.compress(data)
    elif path.suffix == ".zst":
        import zstandard

        data = zstandard.compress(data)
    path.write_bytes(data)
    return str(path)


def prepared(
    folder: Path,
    documents: Sequence[str],
    *,
    name: str = "tokens",
    valid_share: float = 0.0,
    test_share: float = 0.0,
    piece_megabytes: float = 1e-3,
) -> Path:
    """Return a folder of shards of these documents, as bytes."""
    source = write(folder / f"{name}.jsonl", documents)
    config = PrepareConfig(
        train=(source,),
        out=folder / name,
        valid_share=valid_share,
        test_share=test_share,
        piece_megabytes=piece_megabytes,
    )
    finish(config)
    return folder / name


def finish(config: PrepareConfig) -> Progress:
    """Prepare to the end and return the last progress."""
    *_, last = prepare(config)
    return last
