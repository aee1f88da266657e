"""From files to shards: one process reads, others tokenise, and what is finished stays.

    for progress in prepare(PrepareConfig(train=("books/*.jsonl.xz",), out=Path("tokens"))): ...

The reader cuts the documents, in order, into pieces of about `piece_megabytes` of text. A piece is
a function of the documents alone, so any number of processes writes the same files, and a run that
is started again skips the pieces that are there. In memory are a few pieces and never a whole
source. Read `folder.py` next.
"""

import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from equilm.data.folder import FORMAT, MANIFEST
from equilm.data.pieces import SPLITS, Piece, Plan, Shard, finished, plain, write_json, write_piece
from equilm.data.sources import Document, Reading, Source, find_sources
from equilm.data.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What to prepare, and how.

    Args:
        train: Files, patterns or `hf:NAME[:CONFIG[:SPLIT]]`, in this order; they are split by
            `valid_share` and `test_share`.
        valid: Sources whose documents are all for validation.
        test: Sources whose documents are all for testing.
        out: The folder of the shards.
        tokenizer: `bytes`, a folder or file of a tokenizer, or a name on the Hugging Face Hub.
        end_token: The end token as text; "" takes the tokenizer's own.
        field: The column of the text in jsonl, Parquet and datasets.
        valid_share: Share of the documents of `train` for validation, by a hash of their text.
        test_share: Likewise for testing.
        piece_megabytes: Text a piece, in 10⁶ bytes; a document is never cut, however long.
        workers: Processes that tokenise; 1 works in this one.
    """

    train: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    out: Path
    tokenizer: str = "bytes"
    end_token: str = ""
    field: str = "text"
    valid_share: float = 0.0
    test_share: float = 0.0
    piece_megabytes: float = 32.0
    workers: int = 1

    def __post_init__(self) -> None:
        if not (*self.train, *self.valid, *self.test):
            raise ValueError("train: expected one source or more, got none")
        for name in ("valid_share", "test_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a share in [0, 1), got {getattr(self, name)}")
        if self.valid_share + self.test_share >= 1:
            raise ValueError("valid_share: expected less than 1 together with test_share")
        if not self.piece_megabytes > 0:
            raise ValueError(f"piece_megabytes: expected a number > 0, got {self.piece_megabytes}")
        if self.workers < 1:
            raise ValueError(f"workers: expected an integer >= 1, got {self.workers}")

    @property
    def plan(self) -> Plan:
        """What every piece needs to know."""
        return Plan(
            out=self.out,
            tokenizer=self.tokenizer,
            end_token=self.end_token,
            valid_share=self.valid_share,
            test_share=self.test_share,
        )


class Progress(NamedTuple):
    """How far it is, after each piece."""

    documents: int
    tokens: int
    text_bytes: int
    kept: int  # pieces that were there already
    pieces: int
    bytes_read: int  # of the files, which the reader has read
    bytes_total: int  # 0 where datasets by name are among the sources
    without: tuple[str, ...]  # sources in which no document was


def prepare(config: PrepareConfig) -> Iterator[Progress]:
    """Write the shards and, last, the manifest.

    Yields:
        Progress, after each piece.

    Raises:
        ValueError: For a source that cannot be read, or a folder of another preparation; names it.
            What is finished stays, and the same call goes on from there. For shares that leave
            nothing to train on.
        OSError: For a full disk, likewise.
        RuntimeError: If a process was killed.
    """
    tokenizer = load_tokenizer(config.tokenizer, config.end_token)
    readings = _readings(config)
    config.out.mkdir(parents=True, exist_ok=True)
    _claim(config.out, tokenizer)
    shards: list[Shard] = []
    kept = pieces = 0
    for found, was_there in _written(config, readings):
        shards += found
        kept, pieces = kept + was_there, pieces + 1
        yield _progress(shards, kept, pieces, readings)
    if not shards:
        raise ValueError("train: expected documents, got only empty sources")
    _check_shares(config, shards)
    write_json(config.out / MANIFEST, _manifest(config, tokenizer, shards))
    _remove_rest(config.out, shards, pieces)


def _check_shares(config: PrepareConfig, shards: list[Shard]) -> None:
    """Refuse shares that leave nothing to train on: a document goes whole, by its hash."""
    splits = {shard.split for shard in shards}
    if config.train and (config.valid_share or config.test_share) and "train" not in splits:
        documents = sum(shard.documents for shard in shards)
        name = "valid_share" if "valid" in splits else "test_share"
        raise ValueError(
            f"{name}: expected documents left for training, got none of {documents}; documents are "
            "never cut, so give more of them, or one of their own for each split"
        )


def _readings(config: PrepareConfig) -> dict[str, Reading]:
    given = {"": config.train, "valid": config.valid, "test": config.test}
    return {
        split: Reading(find_sources(sources), field=config.field)
        for split, sources in given.items()
        if sources
    }


def _claim(out: Path, tokenizer: Tokenizer) -> None:
    """Refuse a folder with the shards of another tokenizer."""
    path = out / "begun.json"
    mine = {"format": FORMAT, **tokenizer._asdict(), "dtype": tokenizer.dtype}
    del mine["encode"]
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        write_json(path, mine)
        return
    except ValueError:
        theirs = None
    if theirs != mine:
        raise ValueError(f"{out}: holds tokens of another tokenizer; choose another --out")


def _pieces(config: PrepareConfig, readings: dict[str, Reading]) -> Iterator[Piece]:
    limit, number = config.piece_megabytes * 1e6, 0
    for split, reading in readings.items():
        documents: list[Document] = []
        size = 0
        for document in reading:
            documents.append(document)
            size += len(document.text)
            if size >= limit:
                yield Piece(number, split, documents)
                documents, size, number = [], 0, number + 1
        if documents:
            yield Piece(number, split, documents)
            number += 1


def _written(
    config: PrepareConfig, readings: dict[str, Reading]
) -> Iterator[tuple[list[Shard], bool]]:
    """The shards of every piece in order, and whether they were there already."""
    plan, waiting = config.plan, deque[Callable[[], tuple[list[Shard], bool]]]()
    with _workers(config.workers) as submit:
        for piece in _pieces(config, readings):
            shards = finished(piece, plan)
            if shards is not None:
                waiting.append(lambda shards=shards: (shards, True))  # type: ignore[misc]
            else:
                # From here on the folder is no longer what an older manifest says.
                (config.out / MANIFEST).unlink(missing_ok=True)
                waiting.append(submit(piece, plan))
            # One piece more than there are processes is read ahead, no more.
            while len(waiting) > config.workers:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()


@contextmanager
def _workers(count: int) -> Iterator[Callable[[Piece, Plan], Callable[[], Any]]]:
    """A function that begins a piece and returns how to wait for it."""
    if count == 1:
        yield lambda piece, plan: lambda: (write_piece(piece, plan), False)
        return
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if context.get_start_method() == "forkserver":
        # Imported once, and not by every process again.
        context.set_forkserver_preload(["equilm.data.pieces"])
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin_worker)

    def wait(future: Future[list[Shard]]) -> tuple[list[Shard], bool]:
        return future.result(), False

    def submit(piece: Piece, plan: Plan) -> Callable[[], Any]:
        future = pool.submit(write_piece, piece, plan)
        return lambda: wait(future)

    try:
        yield submit
    except BrokenProcessPool:
        raise RuntimeError(
            "a process that tokenises was killed; the same command goes on from the last piece"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    # An interrupt is for the reader to act upon; pieces that are begun are finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_reader, daemon=True).start()


def _end_with_reader() -> None:
    """Wait for a reader that is killed, after which nobody would end this process."""
    reader = multiprocessing.parent_process()
    assert reader is not None
    reader.join()
    os._exit(1)


def _progress(
    shards: list[Shard], kept: int, pieces: int, readings: dict[str, Reading]
) -> Progress:
    sources: list[Source] = [one for reading in readings.values() for one in reading.sources]
    by_name = any(source.path is None for source in sources)
    return Progress(
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        text_bytes=sum(shard.bytes for shard in shards),
        kept=kept,
        pieces=pieces,
        bytes_read=sum(reading.bytes_read for reading in readings.values()),
        bytes_total=0 if by_name else sum(source.size_bytes for source in sources),
        without=tuple(name for reading in readings.values() for name in reading.without),
    )


def _manifest(config: PrepareConfig, tokenizer: Tokenizer, shards: list[Shard]) -> dict[str, Any]:
    splits = {}
    for split in SPLITS:
        mine = [shard for shard in shards if shard.split == split]
        if mine:
            splits[split] = {
                "documents": sum(shard.documents for shard in mine),
                "tokens": sum(shard.tokens for shard in mine),
                "bytes": sum(shard.bytes for shard in mine),
                "shards": [
                    {name: part for name, part in shard._asdict().items() if name != "split"}
                    for shard in mine
                ],
            }
    return {
        "format": FORMAT,
        "tokenizer": {
            "name": tokenizer.name,
            "digest": tokenizer.digest,
            "vocab_size": tokenizer.vocab_size,
            "end_token": tokenizer.end_token,
        },
        "dtype": tokenizer.dtype,
        "plan": plain(config.plan),
        "sources": {name: list(getattr(config, name)) for name in SPLITS},
        "splits": splits,
    }


def _remove_rest(out: Path, shards: list[Shard], pieces: int) -> None:
    """Delete what an earlier preparation of other documents left behind."""
    named = {shard.file for shard in shards} | {f"{number:05d}.json" for number in range(pieces)}
    for path in out.glob("[0-9]*.*"):
        if path.name.partition(".")[0].isdecimal() and path.name not in named:
            path.unlink()
