"""Documents to measure on, of files of text or prepared shards, cut into rows of tokens.

Read `equilm/data/sources.py` for the formats, and `perplexity.py` next.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from equilm.data import open_folder
from equilm.data.folder import MANIFEST
from equilm.data.sources import FORMATS, Reading, find_sources
from equilm.decode.text import Ids, Tokenizer

MAX_TOKENS = 1 << 26  # read of a prepared split

Document = str | Tensor  # a text, or (T) int64 tokens


def read_documents(paths: Sequence[Path], *, split: str = "test") -> Iterator[Document]:
    """Yield the documents of files of text, of folders of these, and of prepared folders.

    Args:
        paths: What `equilm data prepare` reads, all of it; or what it wrote.
        split: Of what it wrote.

    Raises:
        ValueError: One line that names the file, for one that is of another kind, empty, cut
            short, no UTF-8 or no JSON.
        OSError: If one cannot be read.
    """
    for path in paths:
        if (path / MANIFEST).exists():
            yield from _prepared(path, split)
            continue
        files = [path]
        if path.is_dir():
            files = [one for one in sorted(path.rglob("*")) if _is_text(one)]
            if not files:
                raise ValueError(f"{path}: expected files ending in {', '.join(FORMATS)}")
        reading = Reading(find_sources(tuple(map(str, files))), field="text")
        for document in reading:
            yield document.text
        for name in reading.without:
            raise ValueError(f"{name}: expected text, got an empty file")


def cut(
    documents: Sequence[Document], tokenizer: Tokenizer, *, length: int, rows: int, seed: int
) -> Tensor:
    """Return pieces of `length` tokens, each of one document, of as many documents as can be.

    Args:
        documents: Texts or tokens.
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
        one = documents[place]
        ids = torch.tensor(tokenizer.encode(one)) if isinstance(one, str) else one
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


def _is_text(path: Path) -> bool:
    return path.is_file() and any(suffix in FORMATS for suffix in path.suffixes)


def _prepared(path: Path, split: str) -> Iterator[Tensor]:
    """The documents of a split without the end tokens between them."""
    folder = open_folder(path)
    stream = folder.stream(split)
    tokens = stream.read(0, min(len(stream), MAX_TOKENS)).astype(np.int64)
    ends = np.flatnonzero(tokens == folder.end_token)
    for ids in np.split(tokens, ends):
        yield torch.from_numpy(ids[1:] if len(ids) and ids[0] == folder.end_token else ids)
