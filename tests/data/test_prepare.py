import hashlib
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equilm.data import PrepareConfig, open_folder
from equilm.data import pieces as pieces_module
from equilm.data import prepare as prepare_documents
from equilm.data.pieces import Plan, split_of
from tests.data.corpus import finish, prepared, texts, write

END = 256


def documents_of(folder: Path, split: str) -> list[str]:
    """What is in the shards, read without the reader."""
    manifest = json.loads((folder / "manifest.json").read_text())
    found = []
    for shard in manifest["splits"][split]["shards"]:
        ids = np.fromfile(folder / shard["file"], dtype=manifest["dtype"]).tolist()
        assert ids[-1] == END
        while ids:
            end = ids.index(END)
            found.append(bytes(ids[:end]).decode())
            ids = ids[end + 1 :]
    return found


def content(folder: Path) -> dict[str, str]:
    paths = sorted(folder.iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_every_document_is_in_one_shard_in_order(tmp_path: Path) -> None:
    documents = texts(60)
    folder = prepared(tmp_path, documents)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert len(manifest["splits"]["train"]["shards"]) > 3
    assert documents_of(folder, "train") == documents
    told = manifest["splits"]["train"]
    assert told["documents"] == len(documents)
    assert told["bytes"] == sum(len(one.encode()) for one in documents)
    assert told["tokens"] == told["bytes"] + told["documents"]
    open_folder(folder).check()


def test_the_split_of_a_document_is_a_function_of_its_text(tmp_path: Path) -> None:
    documents = texts(400, longest=5)
    one = prepared(tmp_path, documents, valid_share=0.2, test_share=0.1)
    other = prepared(
        tmp_path, documents[::-1], name="other", valid_share=0.2, test_share=0.1, piece_megabytes=1
    )
    found: Counter[str] = Counter()
    for split in ("train", "valid", "test"):
        mine = documents_of(one, split)
        assert sorted(mine) == sorted(documents_of(other, split))
        found.update(mine)
    assert found == Counter(documents)
    # Three standard errors of 400 draws.
    assert abs(len(documents_of(one, "valid")) - 80) < 24
    assert abs(len(documents_of(one, "test")) - 40) < 18


def test_a_split_was_written_down_once(tmp_path: Path) -> None:
    plan = Plan(out=tmp_path, tokenizer="bytes", end_token="", valid_share=0.5, test_share=0.25)
    found = [split_of(text, plan) for text in "abcdefghij"]
    assert found == [
        "valid",
        "valid",
        "valid",
        "valid",
        "valid",
        "train",
        "test",
        "valid",
        "valid",
        "valid",
    ]


def test_sources_of_their_own_for_validation(tmp_path: Path) -> None:
    train, valid = texts(5), texts(3, seed=1)
    config = PrepareConfig(
        train=(write(tmp_path / "t.jsonl", train),),
        valid=(write(tmp_path / "v.jsonl", valid),),
        out=tmp_path / "tokens",
    )
    finish(config)
    assert documents_of(config.out, "train") == train
    assert documents_of(config.out, "valid") == valid


@pytest.mark.multi
def test_any_number_of_processes_writes_the_same(tmp_path: Path) -> None:
    source = write(tmp_path / "d.jsonl", texts(60))
    config = PrepareConfig(train=(source,), out=tmp_path / "one", piece_megabytes=1e-3)
    finish(config)
    finish(replace(config, out=tmp_path / "two", workers=2))
    assert content(tmp_path / "one") == content(tmp_path / "two")


class Died(BaseException):
    """As a signal would end it."""


def test_what_is_finished_is_kept_and_what_is_half_done_is_redone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = texts(60)
    whole = prepared(tmp_path, documents, name="whole")
    config = PrepareConfig(
        train=(write(tmp_path / "d.jsonl", documents),), out=tmp_path / "d", piece_megabytes=1e-3
    )
    calls: list[str] = []

    def dies_at_the_third(plan: Any, *rest: Any) -> Any:
        calls.append(plan)
        if len(calls) == 40:
            raise Died
        return encode(plan, *rest)

    encode = pieces_module._Writer.add
    with monkeypatch.context() as patch:
        patch.setattr(pieces_module._Writer, "add", dies_at_the_third)
        with pytest.raises(Died):
            finish(config)
    with pytest.raises(ValueError, match="begun and not finished"):
        open_folder(config.out)
    left = {path.name: path.stat().st_mtime_ns for path in config.out.glob("*.bin")}
    assert len(left) >= 2
    assert not list(config.out.glob("*.tmp"))
    # As if the process had died while it wrote.
    (config.out / "00000.train.bin").write_bytes(b"half")
    last = finish(config)
    assert last.kept == len(left) - 1
    assert {path.stem for path in config.out.glob("*.bin")} > {Path(name).stem for name in left}
    for name, written in left.items():
        same = (config.out / name).stat().st_mtime_ns == written
        assert same == (name != "00000.train.bin")
    got, want = content(config.out), content(whole)
    assert {n: d for n, d in got.items() if n != "manifest.json"} == {
        n: d for n, d in want.items() if n != "manifest.json"
    }


def test_documents_that_changed_are_done_again(tmp_path: Path) -> None:
    documents = texts(60)
    folder = prepared(tmp_path, documents)
    documents[30] = "another"
    prepared(tmp_path, documents)
    assert documents_of(folder, "train") == documents
    prepared(tmp_path, documents[:10])
    assert documents_of(folder, "train") == documents[:10]
    named = json.loads((folder / "manifest.json").read_text())["splits"]["train"]["shards"]
    assert {path.name for path in folder.glob("*.bin")} == {shard["file"] for shard in named}


def test_a_document_longer_than_a_piece_is_not_cut(tmp_path: Path) -> None:
    documents = ["short", "long " * 5000, "short too"]
    folder = prepared(tmp_path, documents)
    assert documents_of(folder, "train") == documents


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = texts(60)
    config = PrepareConfig(
        train=(write(tmp_path / "d.jsonl", documents),), out=tmp_path / "d", piece_megabytes=1e-3
    )
    synced: list[int] = []

    def full(file: int) -> None:
        synced.append(file)
        if len(synced) == 6:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            finish(config)
    assert not list(config.out.glob("*.tmp"))
    assert finish(config).kept >= 1
    assert documents_of(config.out, "train") == documents


def test_only_empty_sources(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match="only empty sources"):
        finish(PrepareConfig(train=(str(tmp_path / "e.jsonl"),), out=tmp_path / "o"))


def test_an_empty_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_bytes(b"\n")
    sources = (str(tmp_path / "e.jsonl"), write(tmp_path / "d.jsonl", ["", "one"]))
    last = finish(PrepareConfig(train=sources, out=tmp_path / "o"))
    assert last.without == (sources[0],)
    assert last.documents == 1
    assert last.bytes_read == last.bytes_total > 0


def test_a_folder_of_another_tokenizer(tmp_path: Path) -> None:
    folder = prepared(tmp_path, ["one"])
    told = json.loads((folder / "begun.json").read_text())
    (folder / "begun.json").write_text(json.dumps({**told, "digest": "other"}))
    with pytest.raises(ValueError, match="another tokenizer"):
        prepared(tmp_path, ["one"])
    assert open_folder(folder).splits["train"]["documents"] == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"train": ()}, "train: expected one source"),
        ({"valid_share": 1.0}, "valid_share: expected a share"),
        ({"valid_share": 0.6, "test_share": 0.5}, "together with test_share"),
        ({"workers": 0}, "workers: expected"),
        ({"piece_megabytes": 0.0}, "piece_megabytes: expected"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        PrepareConfig(**{"train": ("a",), "out": tmp_path, **change})


def test_progress_is_told_after_each_piece(tmp_path: Path) -> None:
    source = write(tmp_path / "d.jsonl.xz", texts(60))
    config = PrepareConfig(train=(source,), out=tmp_path / "o", piece_megabytes=1e-3)
    told = list(prepare_documents(config))
    assert [one.pieces for one in told] == list(range(1, len(told) + 1))
    assert told[-1].documents == 60
    assert told[-1].bytes_read == told[-1].bytes_total


def test_a_share_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    # Whichever split the hash of the one document chooses, some share takes it.
    with pytest.raises(ValueError, match=r"valid_share: .* left for training, got none of 1;"):
        prepared(tmp_path, texts(1), valid_share=0.999)
    with pytest.raises(ValueError, match=r"test_share: .* left for training, got none of 1;"):
        prepared(tmp_path, texts(1), name="other", test_share=0.999)
