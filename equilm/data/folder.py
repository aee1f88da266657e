"""A prepared folder: its manifest, and each split as one stream of tokens over all its shards.

Where one shard ends and the next begins is invisible in a stream. Read `windows.py` next.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from equilm.config import suggest
from equilm.data.pieces import chunks_of

FORMAT = "equilm tokens 1"
MANIFEST = "manifest.json"
MAX_OPEN = 1024  # shards mapped at a time; a process may map some 65,000 areas


class Stream:
    """The tokens of a split, shard after shard.

    Args:
        paths: The shards.
        tokens: How many tokens each holds.
        dtype: Of a token.
    """

    def __init__(self, paths: list[Path], tokens: list[int], dtype: str) -> None:
        self.paths, self.dtype = paths, dtype
        self.ends = np.cumsum(np.array(tokens, dtype=np.int64))

    def __len__(self) -> int:
        """Return the number of tokens."""
        return int(self.ends[-1])

    def read(self, start: int, count: int) -> NDArray[Any]:
        """Return the tokens start … start + count − 1, which must be there."""
        assert start >= 0 and start + count <= len(self)
        shard = int(np.searchsorted(self.ends, start, side="right"))
        parts = []
        while count > 0:
            inside = start - (int(self.ends[shard - 1]) if shard else 0)
            part = _mapped(self.paths[shard], self.dtype)[inside : inside + count]
            parts.append(part)
            start, count, shard = start + len(part), count - len(part), shard + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def joined(streams: Sequence[Stream]) -> Stream:
    """Return one stream, made of several of one tokenizer."""
    tokens = [np.diff(stream.ends, prepend=0).tolist() for stream in streams]
    paths = [path for stream in streams for path in stream.paths]
    return Stream(paths, [count for part in tokens for count in part], streams[0].dtype)


class Folder(NamedTuple):
    """What the manifest says."""

    path: Path
    tokenizer: str
    digest: str  # of the tokenizer
    vocab_size: int
    end_token: int
    dtype: str
    splits: dict[str, Any]

    def stream(self, split: str) -> Stream:
        """Return the tokens of a split.

        Raises:
            ValueError: If it has no such split, or a shard is missing or cut short.
        """
        if split not in self.splits:
            raise ValueError(
                f"split: expected one that {self.path} has, got {split!r}; "
                f"{suggest(split, self.splits)}"
            )
        shards = self.splits[split]["shards"]
        itemsize = np.dtype(self.dtype).itemsize
        for shard in shards:
            path, expected = self.path / shard["file"], shard["tokens"] * itemsize
            found = path.stat().st_size if path.is_file() else None
            if found != expected:
                got = "no such file" if found is None else f"{found:,}"
                raise ValueError(
                    f"{path}: expected {expected:,} bytes, got {got}; prepare the folder again"
                )
        return Stream(
            [self.path / shard["file"] for shard in shards],
            [shard["tokens"] for shard in shards],
            self.dtype,
        )

    def check(self) -> None:
        """Compare every shard with its checksum.

        Raises:
            ValueError: Names the first that differs.
        """
        for split, told in self.splits.items():
            self.stream(split)
            for shard in told["shards"]:
                found = hashlib.sha256()
                for data in chunks_of(self.path / shard["file"]):
                    found.update(data)
                if found.hexdigest() != shard["sha256"]:
                    raise ValueError(
                        f"{self.path / shard['file']}: expected sha256 {shard['sha256'][:16]}…, "
                        f"got {found.hexdigest()[:16]}…; prepare the folder again"
                    )


def open_folder(path: Path) -> Folder:
    """Read the manifest of a prepared folder.

    Raises:
        ValueError: If there is none, or one that this version does not know.
    """
    try:
        told = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        begun = " (it was begun and not finished)" if (path / "begun.json").exists() else ""
        raise ValueError(
            f"{path}: expected a folder of tokens with {MANIFEST}, got none{begun}; "
            "make it with: equilm data prepare"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path / MANIFEST}: {error}") from None
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise ValueError(f"{path / MANIFEST}: expected format {FORMAT!r}, got another")
    tokenizer = told["tokenizer"]
    return Folder(
        path=path,
        tokenizer=tokenizer["name"],
        digest=tokenizer["digest"],
        vocab_size=tokenizer["vocab_size"],
        end_token=tokenizer["end_token"],
        dtype=told["dtype"],
        splits=told["splits"],
    )


@lru_cache(maxsize=MAX_OPEN)
def _mapped(path: Path, dtype: str) -> NDArray[Any]:
    return np.memmap(path, dtype=dtype, mode="r")
