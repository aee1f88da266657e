"""Where documents come from: files of several formats, packed or not, and datasets by name.

Every mistake in a file is told with its name and line. Read `prepare.py` for what becomes of the
documents.
"""

import glob
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from equilm.config import suggest

FORMATS = (".jsonl", ".ndjson", ".txt", ".text", ".md", ".parquet")
PACKINGS = (".gz", ".xz", ".zst")
DATASET = "hf:"  # before the name of a dataset


class Document(NamedTuple):
    """A text and where it stands, for a message about it."""

    text: str
    place: str


class Source(NamedTuple):
    """A file, or with no path a dataset by name."""

    name: str
    path: Path | None
    size_bytes: int


def find_sources(given: tuple[str, ...]) -> list[Source]:
    """Return what is meant by files, patterns and `hf:NAME[:CONFIG[:SPLIT]]`, patterns sorted.

    Raises:
        ValueError: For a pattern without files, or a file of no known format.
    """
    found = []
    for one in given:
        if one.startswith(DATASET):
            found.append(Source(one, None, 0))
            continue
        paths = [Path(one)] if Path(one).is_file() else sorted(map(Path, _matches(one)))
        if not paths:
            raise ValueError(
                f"sources: expected files, got {one}, which matches none; "
                f"a dataset's name is written {DATASET}NAME"
            )
        for path in paths:
            _format(path)
            found.append(Source(str(path), path, path.stat().st_size))
    return found


class Reading:
    """Documents of sources in order, and how much of the files has been read.

    Args:
        sources: From `find_sources`.
        field: The column of a text in tables.
    """

    def __init__(self, sources: list[Source], *, field: str) -> None:
        self.sources, self.field = sources, field
        self.bytes_read = 0  # of the files as they lie on disk
        self.without: list[str] = []  # sources that had no documents

    def __iter__(self) -> Iterator[Document]:
        """Yield every document.

        Raises:
            ValueError: Names the file and line of what cannot be read.
            OSError: A file cannot be opened.
        """
        for source in self.sources:
            count, before = 0, self.bytes_read
            for document in self._documents(source, before):
                count += 1
                yield document
            self.bytes_read = before + source.size_bytes
            if not count:
                self.without.append(source.name)

    def _documents(self, source: Source, before: int) -> Iterator[Document]:
        if source.path is None:
            yield from _of_dataset(source.name, self.field)
            return
        kind = _format(source.path)
        if kind == ".parquet":
            yield from _of_parquet(source.path, self.field)
            return
        with source.path.open("rb") as raw, _told(source.path), _unpacked(source.path, raw) as file:
            documents = _of_lines if kind in (".jsonl", ".ndjson") else _of_text
            for document in documents(file, source.path, self.field):
                self.bytes_read = before + raw.tell()
                yield document


def _matches(pattern: str) -> list[str]:
    return [path for path in glob.glob(pattern, recursive=True) if Path(path).is_file()]


def _format(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKINGS:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in FORMATS:
        raise ValueError(
            f"{path}: expected a file ending in {', '.join(FORMATS)}, with or without "
            f"{', '.join(PACKINGS)} behind"
        )
    return suffixes[-1]


def _unpacked(path: Path, raw: IO[bytes]) -> IO[bytes]:
    match path.suffix.lower():
        case ".gz":
            return cast(IO[bytes], gzip.open(raw))
        case ".xz":
            return cast(IO[bytes], lzma.open(raw))
        case ".zst":
            return io.BufferedReader(_Zstandard(raw, path))
        case _:
            return raw


class _Zstandard(io.RawIOBase):
    """Frames one after another; unlike the package's own reader it tells a file cut short."""

    def __init__(self, raw: IO[bytes], path: Path) -> None:
        try:
            from zstandard import ZstdDecompressor
        except ImportError:
            raise _missing("zstandard", path) from None
        self.raw, self.decompressor = raw, ZstdDecompressor()
        self.frame: Any = None
        self.data = self.rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.data:
            given = self.rest or self.raw.read(1 << 17)
            if not given:
                if self.frame is not None:
                    raise EOFError("it ends inside a frame")
                return 0
            if self.frame is None:
                self.frame = self.decompressor.decompressobj()
            self.data, self.rest = self.frame.decompress(given), b""
            if self.frame.eof:
                self.rest, self.frame = self.frame.unused_data, None
        count = min(len(buffer), len(self.data))
        buffer[:count], self.data = self.data[:count], self.data[count:]
        return count


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Name the file where a decompressor does not."""
    try:
        yield
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: expected a whole {path.suffix} file ({error})") from None
    except OSError:
        raise
    except Exception as error:
        # zstandard's own error, which may not be there to name.
        if type(error).__name__ != "ZstdError":
            raise
        raise ValueError(f"{path}: expected a whole {path.suffix} file ({error})") from None


def _of_text(file: IO[bytes], path: Path, field: str) -> Iterator[Document]:
    """A text file is one document."""
    text = _decoded(file.read(), str(path))
    if text:
        yield Document(text, str(path))


def _of_lines(file: IO[bytes], path: Path, field: str) -> Iterator[Document]:
    for number, line in enumerate(file, start=1):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(_decoded(line, place))
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: expected one JSON object a line ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{place}: expected a JSON object, got {str(row)[:40]}")
        yield _document(row, field, place)


def _of_parquet(path: Path, field: str) -> Iterator[Document]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise _missing("pyarrow", path) from None
    try:
        with parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if field not in names:
                raise ValueError(f"{path}: no column {field!r}; {suggest(field, names)}")
            number = 0
            for batch in table.iter_batches(batch_size=256, columns=[field]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    yield _document({field: text}, field, f"{path}:{number}")
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: expected a Parquet file ({error})") from None


def _of_dataset(name: str, field: str) -> Iterator[Document]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise _missing("datasets", name) from None
    path, config, split = (*name.removeprefix(DATASET).split(":"), "", "")[:3]
    try:
        rows = load_dataset(path, config or None, split=split or "train", streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected a dataset ({error})") from None
    for number, row in enumerate(rows, start=1):
        yield _document(row, field, f"{name}:{number}")


def _document(row: dict[str, Any], field: str, place: str) -> Document:
    if field not in row:
        raise ValueError(f"{place}: no field {field!r}; {suggest(field, list(row))}")
    text = row[field]
    if not isinstance(text, str):
        raise ValueError(f"{place}: {field}: expected text, got {str(text)[:40]}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: {field}: expected text, got {error.reason}") from None
    return Document(text, place)


def _decoded(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = data[error.start]
        raise ValueError(
            f"{place}: expected UTF-8, got byte 0x{found:02x} at {error.start}"
        ) from None


def _missing(package: str, where: object) -> ValueError:
    return ValueError(
        f"{where}: expected the package {package}; install it with: pip install 'equilm[data]'"
    )
