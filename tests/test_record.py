"""Records survive the file, the kill and the resume, and a bad line is named."""

import importlib.metadata
import json
import math
from pathlib import Path

import pytest

from equilm import record
from equilm.record import Record

FULL = Record(
    name="evaluations",
    value=[4.0, 10.5, 7.0],
    unit="evaluations",
    model="implicit",
    task="word_problem S3",
    split="test",
    length=3,
    window=1,
    tolerance=0.05,
    max_steps=64,
    step=650,
    seed=0,
    row=2,
    part="scan forward",
    batch=16,
    sweeps=24,
    phantom=4,
    precision="bf16",
    commit="0a1b2c3",
    device="cpu",
    software="torch 2.11.0, triton 3.6.0",
)


def loss(step: int, value: float = 1.0) -> Record:
    return Record(name="loss", value=value, unit="nats", split="train", step=step)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics.jsonl"


def test_round_trip(path: Path) -> None:
    record.append(path, [FULL, loss(1)])
    record.append(path, [loss(2)])
    assert record.read(path) == [FULL, loss(1), loss(2)]


def test_several_files_are_read_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / "b.jsonl", tmp_path / "a.jsonl"]
    for step, each in enumerate(paths):
        record.append(each, [loss(step)])
    assert [one.step for one in record.read(paths)] == [0, 1]


def test_non_finite_numbers_stay_strict_json(path: Path) -> None:
    record.append(path, [loss(1, math.nan), loss(2, -math.inf)])
    record.append(path, [Record(name="residual_by_sweep", value=[math.inf, 0.5], unit="1")])

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    nan, minus_infinity, series = (one.value for one in record.read(path))
    assert isinstance(nan, float) and math.isnan(nan)
    assert minus_infinity == -math.inf
    assert series == [math.inf, 0.5]
    unlimited = Record(name="loss", value=1.0, unit="nats", tolerance=math.inf)
    record.append(path, [unlimited])
    assert record.read(path)[-1] == unlimited


@pytest.mark.parametrize("lost", [1, 2, 20, -1])
def test_torn_last_line_is_ignored_and_cut_off(path: Path, lost: int) -> None:
    record.append(path, [loss(1), loss(2)])
    content = path.read_bytes()
    end_of_first = content.index(b"\n") + 1
    cut = content[:-lost] if lost > 0 else content[: end_of_first + 1]
    path.write_bytes(cut)
    kept = [loss(1), loss(2)] if lost == 1 else [loss(1)]
    assert record.read(path) == kept
    record.append(path, [loss(3)])
    assert record.read(path) == [*kept, loss(3)]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"name": "loss", "value": 1, "unit"', "delimiter"),
        ('{"name": "loss", "value": 1, "unit": "nats", "stepp": 3}', "did you mean 'step'"),
        ('{"name": "loss", "value": 1}', "missing key 'unit'"),
        ('{"name": "loss", "value": NaN, "unit": "nats"}', "NaN is not JSON"),
        ('{"name": "loss", "value": "much", "unit": "nats"}', "got 'much'"),
        ('{"name": "loss", "value": true, "unit": "nats"}', "got True"),
        ('{"name": "loss", "value": 1, "unit": "nats", "step": 1.5}', "step: expected int"),
        (
            '{"name": "loss", "value": 1, "unit": "nats", "tolerance": true}',
            "tolerance: expected a",
        ),
        ("[1, 2]", "expected a JSON object"),
        ("", "Expecting value"),
    ],
)
def test_a_bad_line_is_named(path: Path, line: str, told: str) -> None:
    record.append(path, [loss(1)])
    with path.open("a") as file:
        file.write(line + "\n")
    record.append(path, [loss(2)])
    with pytest.raises(ValueError, match="metrics.jsonl:2: .*" + told):
        record.read(path)


def test_a_whole_last_line_is_judged_without_its_end(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"name": "loss", "value": 1, "unit": "nats", "colour": "red"}')
    with pytest.raises(ValueError, match=r"metrics.jsonl:1: unknown key 'colour'"):
        record.read(path)


def test_a_value_that_is_no_number_is_refused_before_writing(path: Path) -> None:
    with pytest.raises(ValueError, match="value of 'loss'"):
        record.append(path, [Record(name="loss", value=None, unit="nats")])  # type: ignore[arg-type]
    assert not path.exists()


def test_truncate_makes_a_resumed_file_equal_to_the_unbroken_one(path: Path) -> None:
    unbroken = path.with_name("unbroken.jsonl")
    parameters = Record(name="parameters", value=61_000.0, unit="count")
    record.append(unbroken, [parameters, *map(loss, range(10))])
    record.append(path, [parameters, *map(loss, range(8))])
    path.write_bytes(path.read_bytes()[:-5])
    record.truncate(path, 4)
    assert record.read(path) == [parameters, *map(loss, range(5))]
    record.append(path, map(loss, range(5, 10)))
    assert path.read_bytes() == unbroken.read_bytes()


def test_truncate_fails_without_harm(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record.truncate(path, 3)
    assert not path.exists()
    record.append(path, map(loss, range(9)))

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        record.truncate(path, 3)
    assert len(record.read(path)) == 9


def test_environment_describes_a_record() -> None:
    around = record.environment("cpu")
    assert around["device"] == "cpu"
    assert around["commit"]
    assert Record(name="loss", value=1.0, unit="nats", **around).commit == around["commit"]


def test_environment_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert record.environment("cpu")["commit"]


def test_software_is_named_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "triton":
            raise importlib.metadata.PackageNotFoundError(name)
        return "2.11.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert record.software() == "torch 2.11.0"
