"""Measurements as lines of strict JSON: one Record a line, appended, never edited.

Not a logger and not a plotter: training and evaluation write Records, `report` reads them.
A file is append-only but for `truncate`, with which a resumed run forgets what it will repeat.
Read next: `report/page.py`.
"""

import dataclasses
import difflib
import importlib.metadata
import json
import math
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypedDict


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measurement: a value with its unit and everything needed to say of what.

    Args:
        name: what was measured, such as "loss" or "accuracy".
        value: a number, or a series of numbers (per position, per sweep, or a matrix row).
        unit: the unit of the value, such as "nats", "share" or "tokens/s"; "1" for a pure number.
        model: name of the run that was measured.
        task: name of the task.
        split: "train", "valid" or "test".
        length: tokens in a sequence.
        window: tokens solved at once: 1 is sequential, `length` is simultaneous; None where
            it does not apply.
        tolerance: of the solve, relative; None where there was none, or it is not told.
        max_steps: evaluations that a token might take in it; None likewise.
        step: optimizer steps taken before the measurement.
        seed: seed of the run.
        row: index of this series among its kind (sequence, token position, matrix row).
        part: of the model, such as "scan forward"; empty for all of it.
        batch: sequences worked on at once.
        sweeps: evaluations without gradient in a solve, the s of (s+k).
        phantom: evaluations with gradient after them, the k of (s+k).
        precision: the type computed in, such as "bf16".
        commit: commit or version of the package.
        device: machine part that did the work, such as "cpu".
        software: versions of what computes, such as "torch 2.11.0, triton 3.6.0".
    """

    name: str
    value: float | list[float]
    unit: str
    model: str = ""
    task: str = ""
    split: str = ""
    length: int | None = None
    window: int | None = None
    tolerance: float | None = None
    max_steps: int | None = None
    step: int | None = None
    seed: int | None = None
    row: int | None = None
    part: str = ""
    batch: int | None = None
    sweeps: int | None = None
    phantom: int | None = None
    precision: str = ""
    commit: str = ""
    device: str = ""
    software: str = ""


_FIELDS = {field.name: field for field in dataclasses.fields(Record)}
_REQUIRED = [name for name, field in _FIELDS.items() if field.default is dataclasses.MISSING]
_INTEGERS = {name for name, field in _FIELDS.items() if field.type == int | None}
_NUMBERS = {name for name, field in _FIELDS.items() if field.type == float | None}
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def append(path: str | Path, records: Iterable[Record]) -> None:
    """Write Records at the end of a file, one line each, in one flushed write.

    Args:
        path: the file; it is made, with its folder, if it is not there. A torn last line, as a
            kill leaves it, is cut off first.
        records: what to write.

    Raises:
        ValueError: a value is not a number or a list of numbers.
    """
    lines = b"".join(_encode(record) for record in records)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        lines = _mend_tail(file) + lines
        file.write(lines)
        file.flush()


def read(paths: str | Path | Iterable[str | Path]) -> list[Record]:
    """All Records of one file or of several, in the order of the lines.

    Args:
        paths: a file, or files. A torn last line, as a kill leaves it, is ignored.

    Returns:
        The Records.

    Raises:
        ValueError: any other line is not a Record; the message opens with file:line.
        FileNotFoundError: a file is not there.
    """
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    return [record for path in files for record, _ in _whole_lines(Path(path))]


def truncate(path: str | Path, step: int) -> None:
    """Drop the Records with a step beyond the given one, atomically; a torn last line too.

    Args:
        path: the file; nothing is done if it is not there.
        step: the last step to keep, >= 0. Records without a step stay.

    Raises:
        ValueError: a line, the torn last one aside, is not a Record.
    """
    path = Path(path)
    if not path.exists():
        return
    kept = [line for record, line in _whole_lines(path) if (record.step or 0) <= step]
    scratch = path.with_name(path.name + ".tmp")
    with scratch.open("wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


class Environment(TypedDict):
    """Where a measurement was made: keyword arguments of Record."""

    commit: str
    device: str


def environment(device: str = "") -> Environment:
    """What a Record says about where it came from; ask once a run, it may start git.

    Args:
        device: machine part that does the work, such as "cpu".

    Returns:
        `commit`, the short hash of the package's checkout or, outside one, the package's
        version, and `device`.
    """
    return {"commit": _checkout_commit() or _installed_version(), "device": device}


def software() -> str:
    """The versions of PyTorch and, where it is installed, Triton: what a Record of speed says."""
    told = []
    for name in ("torch", "triton"):
        try:
            told.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(told)


def _checkout_commit() -> str:
    root = Path(__file__).resolve().parent.parent
    # An installed package may lie inside somebody else's repository: ask only at our own root.
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _installed_version() -> str:
    try:
        return importlib.metadata.version("equilm")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _encode(record: Record) -> bytes:
    pairs = ((name, getattr(record, name)) for name in _FIELDS)
    content = {name: value for name, value in pairs if value is not None and value != ""}
    content |= {name: _encode_number(content[name]) for name in _NUMBERS & content.keys()}
    content["value"] = _encode_value(record)
    return json.dumps(content, allow_nan=False).encode() + b"\n"


def _encode_value(record: Record) -> float | str | list[float | str]:
    value = record.value
    try:
        if isinstance(value, list):
            return [_encode_number(float(number)) for number in value]
        return _encode_number(float(value))
    except TypeError:
        raise ValueError(
            f"value of {record.name!r}: expected a number or a list of numbers, got {value!r}"
        ) from None


def _encode_number(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


def _whole_lines(path: Path) -> list[tuple[Record, bytes]]:
    *ended, tail = path.read_bytes().split(b"\n")
    lines = ended if _is_torn(tail) else [*ended, tail]
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append((_decode(line), line + b"\n"))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    return found


def _mend_tail(file: BinaryIO) -> bytes:
    """Cut a torn last line off; returns the line end that a whole one may lack."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return b""
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return b""
    file.seek(0)
    tail = file.read().rpartition(b"\n")[2]
    if not _is_torn(tail):
        return b"\n"
    file.truncate(size - len(tail))
    return b""


def _is_torn(tail: bytes) -> bool:
    """Whether what follows the last line end is less than a line: no JSON object begins another."""
    try:
        json.loads(tail)
    except ValueError:
        return True
    return False


def _decode(line: bytes) -> Record:
    content = json.loads(line, parse_constant=_refuse_constant)
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {content!r}")
    for key in content:
        if key not in _FIELDS:
            near = difflib.get_close_matches(key, _FIELDS, n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown key {key!r}, did you mean {near!r}?")
    missing = [name for name in _REQUIRED if name not in content]
    if missing:
        raise ValueError(f"missing key {missing[0]!r}")
    _check_types(content)
    numbers = {name: _decode_number(name, content[name]) for name in _NUMBERS & content.keys()}
    return Record(**{**content, **numbers, "value": _decode_value(content["value"])})


def _refuse_constant(constant: str) -> float:
    raise ValueError(f'{constant} is not JSON, expected "nan", "inf" or "-inf"')


def _check_types(content: Mapping[str, object]) -> None:
    for name, value in content.items():
        if name == "value" or name in _NUMBERS:
            continue
        kind = int if name in _INTEGERS else str
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name}: expected {kind.__name__}, got {value!r}")


def _decode_value(value: object) -> float | list[float]:
    if isinstance(value, list):
        return [_decode_number("value", number) for number in value]
    return _decode_number("value", value)


def _decode_number(name: str, number: object) -> float:
    if isinstance(number, str) and number in _NON_FINITE:
        return _NON_FINITE[number]
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(f'{name}: expected a number, "nan", "inf" or "-inf", got {number!r}')
    return float(number)
