"""Text to measure on: files of text and JSON lines, packed or not, cut into rows of tokens.

Not training data: nothing is shuffled into shards or kept. Read `perplexity.py` next.
"""

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from equilm.decode.text import Ids, Tokenizer

PACKED: dict[str, Callable[..., Any]] = {
    ".bz2": bz2.open,
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".zst": lambda path, mode: _zstandard().open(path, mode),
}
SUFFIXES = (".jsonl", ".md", ".txt")


class Rows(NamedTuple):
    """Pieces of documents, all of one length."""

    tokens_BT: Tensor  # int64; T is one more than the longest context, for the last target
    text: str  # the name of their source


def read_documents(paths: Sequence[Path]) -> Iterator[str]:
    """Yield the documents of files: all of a text file, the `text` of each line of a .jsonl.

    Args:
        paths: Files ending in .jsonl, .txt or .md, or in these and .gz, .xz, .bz2 or .zst; or
            folders, of which every such file is read.

    Raises:
        ValueError: One line that names the file, for one that is of another kind, empty, cut
            short, no UTF-8 or no JSON.
        OSError: If one cannot be read.
    """
    for path in paths:
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if _kind(file) in SUFFIXES)
            if not files:
                raise ValueError(f"{path}: expected files ending in {', '.join(SUFFIXES)}")
        for file in files:
            yield from _documents(file)


def cut(
    documents: Sequence[str], tokenizer: Tokenizer, *, length: int, rows: int, seed: int
) -> Tensor:
    """Return pieces of `length` tokens, each of one document, of as many documents as can be.

    Args:
        documents: Texts.
        tokenizer: Of the texts.
        length: Tokens of a piece.
        rows: Pieces wanted; there may be fewer.
        seed: Of their choice: a generator of its own.

    Returns:
        (B, length) int64, 1 ≤ B ≤ rows.

    Raises:
        ValueError: If no document has so many tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    share = -(-rows // max(1, len(documents)))
    chosen: list[Tensor] = []
    spare: list[Tensor] = []
    most = 0
    for place in torch.randperm(len(documents), generator=generator).tolist():
        ids = torch.tensor(tokenizer.encode(documents[place]), dtype=torch.int64)
        most = max(most, len(ids))
        pieces = ids[: len(ids) // length * length].view(-1, length)
        pieces = pieces[torch.randperm(len(pieces), generator=generator)]
        chosen += pieces[:share]
        spare += pieces[share:rows]
        if len(chosen) >= rows:
            break
    chosen = [*chosen, *spare][:rows]
    if not chosen:
        raise ValueError(
            f"text: expected a document of at least {length:,} tokens, one more than the longest "
            f"of lengths; the longest has {most:,}"
        )
    return torch.stack(chosen)


def count_bytes(tokenizer: Tokenizer, ids: Sequence[int]) -> int | None:
    """Return the bytes that all but the first of these tokens stand for; `None` if no text."""
    if isinstance(tokenizer, Ids):
        return None
    whole, first = tokenizer.decode(ids), tokenizer.decode(ids[:1])
    return len(whole.encode()) - len(first.encode())


def name_of(paths: Sequence[Path]) -> str:
    """Return what to call the text of these files: the first one's name, without suffixes."""
    first = paths[0].resolve()
    return first.name if first.is_dir() else first.name.split(".")[0]


def _kind(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix in PACKED else path.suffix


def _documents(path: Path) -> Iterator[str]:
    kind = _kind(path)
    if kind not in SUFFIXES:
        raise ValueError(
            f"{path}: expected a file ending in {', '.join(SUFFIXES)}, packed as "
            f"{', '.join(PACKED)} or not"
        )
    opened = PACKED.get(path.suffix, open)
    count = 0
    try:
        with opened(path, "rb") as file:
            for count, text in enumerate(_texts(file, kind, path), start=1):  # noqa: B007
                yield text
    except (lzma.LZMAError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: expected a whole {path.suffix} file ({error})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 ({error})") from None
    if not count:
        raise ValueError(f"{path}: expected text, got an empty file")


def _texts(file: IO[bytes], kind: str, path: Path) -> Iterator[str]:
    if kind != ".jsonl":
        text = file.read().decode()
        if text.strip():
            yield text
        return
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            told = json.loads(line.decode())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: expected JSON ({error})") from None
        body = told.get("text") if isinstance(told, dict) else None
        if not isinstance(body, str):
            raise ValueError(f"{path}:{number}: text: expected a string, got {body!r}")
        yield body


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise ValueError(
            "text: expected the package zstandard for .zst; install it with: "
            "pip install 'equilm[eval]'"
        ) from None
    return zstandard
