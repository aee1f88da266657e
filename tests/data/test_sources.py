import json
from pathlib import Path

import pytest

from equilm.data.sources import Reading, find_sources
from tests.data.corpus import lines, texts, write


def read(*names: object, field: str = "text") -> list[str]:
    sources = find_sources(tuple(map(str, names)))
    return [document.text for document in Reading(sources, field=field)]


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst"])
def test_json_lines(tmp_path: Path, suffix: str) -> None:
    if suffix.endswith(".zst"):
        pytest.importorskip("zstandard")
    documents = texts(20)
    assert read(write(tmp_path / f"d{suffix}", documents)) == documents


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffEins\r\nzwei\n".encode())
    (tmp_path / "b.md").write_text("three", encoding="utf-8")
    (tmp_path / "c.txt").write_bytes(b"")
    assert read(tmp_path / "*.txt", tmp_path / "b.md") == ["Eins\r\nzwei\n", "three"]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    documents = texts(700)
    table = pyarrow.table({"content": documents, "id": list(range(700))})
    parquet.write_table(table, tmp_path / "d.parquet", row_group_size=100)
    assert read(tmp_path / "d.parquet", field="content") == documents
    with pytest.raises(
        ValueError, match=r"d\.parquet: no column 'contents'; did you mean `content`"
    ):
        read(tmp_path / "d.parquet", field="contents")
    (tmp_path / "e.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"e\.parquet: expected a Parquet file"):
        read(tmp_path / "e.parquet")


def test_a_pattern_is_sorted_and_a_list_is_not(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write(tmp_path / f"{name}.jsonl", [name])
    assert read(tmp_path / "*.jsonl") == ["a", "b", "c"]
    assert read(tmp_path / "c.jsonl", tmp_path / "a.jsonl") == ["c", "a"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("none.jsonl", "which matches none; a dataset's name is written hf:NAME"),
        ("a.csv", "expected a file ending in"),
        ("a.gz", "expected a file ending in"),
    ],
)
def test_what_is_no_source(tmp_path: Path, name: str, problem: str) -> None:
    for existing in ("a.csv", "a.gz"):
        (tmp_path / existing).write_bytes(b"x")
    with pytest.raises(ValueError, match=problem):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"\xff\n", r"expected UTF-8, got byte 0xff at 0"),
        (b"{\n", "expected one JSON object a line"),
        (b"[1]\n", "expected a JSON object"),
        (b'{"texts": "a"}\n', "no field 'text'; did you mean `texts`"),
        (b'{"text": 3}\n', "text: expected text, got 3"),
        (b'{"text": "\\ud800"}\n', "text: expected text, got surrogates not allowed"),
    ],
)
def test_the_line_of_a_mistake_is_told(tmp_path: Path, line: bytes, problem: str) -> None:
    (tmp_path / "d.jsonl").write_bytes(lines(["fine"]) + b"\n" + line)
    with pytest.raises(ValueError, match=rf"d\.jsonl:3: {problem}"):
        read(tmp_path / "d.jsonl")


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("broken", ["cut", "other"])
def test_a_packed_file_cut_short(tmp_path: Path, suffix: str, broken: str) -> None:
    if suffix == ".zst":
        pytest.importorskip("zstandard")
    path = tmp_path / f"d.jsonl{suffix}"
    data = Path(write(path, texts(500))).read_bytes()
    path.write_bytes(data[: len(data) // 2] if broken == "cut" else b"something else")
    with pytest.raises(ValueError, match=rf"d\.jsonl\{suffix}"):
        read(path)


def test_a_dataset_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(path: str, config: str | None, *, split: str, streaming: bool) -> object:
        asked.append((path, config, split, streaming))
        return iter([{"text": "one"}, {"text": "two"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read("hf:some/name") == ["one", "two"]
    assert read("hf:name:small:test") == ["one", "two"]
    assert asked == [("some/name", None, "train", True), ("name", "small", "test", True)]


def test_how_much_was_read_is_told(tmp_path: Path) -> None:
    sources = find_sources((write(tmp_path / "a.jsonl.xz", texts(2000)),))
    reading = Reading(sources, field="text")
    seen = [reading.bytes_read for _ in reading]
    assert seen == sorted(seen)
    assert json.dumps(seen[0]) != json.dumps(sources[0].size_bytes) or len(set(seen)) == 1
    assert reading.bytes_read == sources[0].size_bytes
