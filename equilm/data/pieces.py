"""A piece: some documents in order, made into one shard a split, whole or not at all.

    00012.train.bin  00012.valid.bin     tokens, each document followed by the end token
    00012.json                           what they hold; written last, so that it means "finished"

Which split a document belongs to is a function of its text, so that no order of files and no
number of processes changes it. Read `prepare.py` next.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from equilm.data.sources import Document
from equilm.data.tokenizer import Tokenizer, load_tokenizer

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is the same for all pieces.

    Args:
        out: The folder.
        tokenizer: Its name.
        end_token: Its end token, as text; "" for its own.
        valid_share: Of the documents, by hash.
        test_share: Likewise.
    """

    out: Path
    tokenizer: str
    end_token: str
    valid_share: float
    test_share: float


class Piece(NamedTuple):
    """Documents that become one piece; in `split`, or in those that their hashes tell."""

    number: int
    split: str
    documents: list[Document]

    def digest(self, plan: Plan) -> str:
        """Tell this piece from any other that could have its number."""
        shares = (plan.valid_share, plan.test_share) if not self.split else ()
        found = hashlib.sha256(repr((self.split, shares)).encode())
        for document in self.documents:
            data = document.text.encode()
            found.update(len(data).to_bytes(8, "little") + data)
        return found.hexdigest()


class Shard(NamedTuple):
    """One file of tokens."""

    split: str
    file: str
    documents: int
    tokens: int
    bytes: int  # of the text, in UTF-8
    sha256: str


def split_of(text: str, plan: Plan) -> str:
    """Return the split of a document: uniform in its hash, so equal texts never part."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "little") / 2**64
    if place < plan.valid_share:
        return "valid"
    return "test" if place < plan.valid_share + plan.test_share else "train"


def finished(piece: Piece, plan: Plan) -> list[Shard] | None:
    """Return the shards of a piece if they are there, whole, and of these documents."""
    path = plan.out / f"{piece.number:05d}.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        shards = [Shard(**shard) for shard in told["shards"]]
        itemsize, digest = told["itemsize"], told["digest"]
        whole = all((plan.out / one.file).stat().st_size == one.tokens * itemsize for one in shards)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return shards if whole and digest == piece.digest(plan) else None


def write_piece(piece: Piece, plan: Plan) -> list[Shard]:
    """Tokenise the documents of a piece into its shards.

    Returns:
        The shards, one for each split that has documents.

    Raises:
        ValueError: For a document that holds the end token.
        OSError: For a full disk; nothing half written is left under a final name.
    """
    tokenizer = load_tokenizer(plan.tokenizer, plan.end_token)
    stem = f"{piece.number:05d}"
    writers: dict[str, _Writer] = {}
    with ExitStack() as held:
        for document in piece.documents:
            if not document.text:
                continue
            split = piece.split or split_of(document.text, plan)
            if split not in writers:
                path = plan.out / f"{stem}.{split}.bin"
                writers[split] = held.enter_context(_Writer(path, split, tokenizer))
            writers[split].add(document)
    shards = [writers[split].shard() for split in SPLITS if split in writers]
    told = {
        "digest": piece.digest(plan),
        "itemsize": int(tokenizer.dtype[-1]),
        "shards": [shard._asdict() for shard in shards],
    }
    write_json(plan.out / f"{stem}.json", told)
    return shards


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def plain(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON holds it, without the folder, which may move."""
    return {name: value for name, value in asdict(plan).items() if name != "out"}


def chunks_of(path: Path) -> Iterator[bytes]:
    """Yield the content of a file, a MiB at a time."""
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            yield data


class _Writer:
    """A shard on its way; it takes its name when it is closed without an error."""

    def __init__(self, path: Path, split: str, tokenizer: Tokenizer) -> None:
        self.path, self.split, self.tokenizer = path, split, tokenizer
        self.unfinished = path.with_name(f"{path.name}.tmp")
        self.documents = self.tokens = self.bytes = 0
        self.hash = hashlib.sha256()

    def __enter__(self) -> "_Writer":
        self.file: IO[bytes] = self.unfinished.open("wb")
        return self

    def add(self, document: Document) -> None:
        """Write the tokens of a document and the end token."""
        ids, end = self.tokenizer.encode(document.text), self.tokenizer.end_token
        if (ids == end).any():
            raise ValueError(f"{document.place}: expected no end token inside, got id {end}")
        data = ids.astype(self.tokenizer.dtype).tobytes()
        data += end.to_bytes(int(self.tokenizer.dtype[-1]), "little")
        self.file.write(data)
        self.hash.update(data)
        self.documents += 1
        self.tokens += len(ids) + 1
        self.bytes += len(document.text.encode())

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            with self.file:
                if kind is None:
                    self.file.flush()
                    os.fsync(self.file.fileno())
            if kind is None:
                os.replace(self.unfinished, self.path)
        finally:
            self.unfinished.unlink(missing_ok=True)

    def shard(self) -> Shard:
        """Return what was written."""
        return Shard(
            self.split,
            self.path.name,
            self.documents,
            self.tokens,
            self.bytes,
            self.hash.hexdigest(),
        )
