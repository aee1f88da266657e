import json
from pathlib import Path

import numpy as np
import pytest

from equilm.data import Stream, Windows, joined, open_folder
from equilm.data.order import Numbers
from tests.data.corpus import prepared, texts


def stream_of(folder: Path, values: np.ndarray, sizes: list[int]) -> Stream:
    """A stream of these values, cut into shards of these sizes."""
    folder.mkdir()
    assert sum(sizes) == len(values)
    paths = []
    for number, part in enumerate(np.split(values, np.cumsum(sizes)[:-1])):
        paths.append(folder / f"{number}.bin")
        part.astype("<u4").tofile(paths[-1])
    return Stream(paths, sizes, "<u4")


def first(count: int, start: int = 0) -> Numbers:
    return np.arange(start, start + count, dtype=np.uint64)


def test_a_stream_does_not_show_where_shards_end(tmp_path: Path) -> None:
    values = np.arange(100)
    stream = stream_of(tmp_path / "s", values, [3, 1, 50, 46])
    assert len(stream) == 100
    for start in (0, 1, 2, 3, 4, 50, 53, 54, 99):
        for count in (1, 2, 7, 60):
            if start + count <= 100:
                assert stream.read(start, count).tolist() == list(range(start, start + count))
    both = joined([stream, stream_of(tmp_path / "t", values + 100, [100])])
    assert both.read(0, 200).tolist() == list(range(200))


@pytest.mark.parametrize("length", [1, 7, 16])
def test_an_epoch_reads_every_window_once(tmp_path: Path, length: int) -> None:
    stream = stream_of(tmp_path / "s", np.arange(1000), [400, 600])
    windows = Windows([stream], [1], length=length, seed=3)
    count = (1000 - 1) // length
    for epoch in (0, 1, 5):
        rows = windows.read(first(count, epoch * count))
        starts = np.sort(rows[:, 0])
        assert (rows == rows[:, :1] + np.arange(length + 1)).all()
        assert (np.diff(starts) == length).all()
        assert starts[-1] + length <= 999
    if length > 1:
        orders = [windows.read(first(count, epoch * count))[:, 0].tolist() for epoch in (0, 1)]
        assert orders[0] != orders[1]


def test_what_one_epoch_leaves_over_another_reads(tmp_path: Path) -> None:
    stream = stream_of(tmp_path / "s", np.arange(30), [30])
    windows = Windows([stream], [1], length=8, seed=0)
    seen = windows.read(first(3 * 40))
    assert set(seen.flatten().tolist()) == set(range(30))


def test_the_shares_of_a_mixture(tmp_path: Path) -> None:
    small = stream_of(tmp_path / "s", np.arange(100), [100])
    large = stream_of(tmp_path / "l", np.arange(1000) + 1000, [1000])
    windows = Windows([small, large], [0.75, 0.25], length=9, seed=0)
    rows = windows.read(first(440))
    from_small = rows[:, 0] < 1000
    assert from_small.sum() == 330
    # 330 windows of the small source are 30 epochs of 11, and each is read as often.
    for epoch in np.split(rows[from_small], 30):
        assert len(set((epoch[:, 0] // 9).tolist())) == 11
    assert len(set(rows[~from_small][:, 0].tolist())) == 110


@pytest.mark.parametrize("change", [{"seed": 1}, {"length": 9}])
def test_seed_and_length_are_of_the_order(tmp_path: Path, change: dict[str, int]) -> None:
    stream = stream_of(tmp_path / "s", np.arange(1000), [1000])
    one = Windows([stream], [1], **{"length": 8, "seed": 0})
    other = Windows([stream], [1], **{"length": 8, "seed": 0, **change})
    assert one.read(first(50))[:, 0].tolist() != other.read(first(50))[:, 0].tolist()


def test_a_source_too_short_for_a_window(tmp_path: Path) -> None:
    stream = stream_of(tmp_path / "s", np.arange(10), [10])
    Windows([stream], [1], length=9, seed=0).read(first(5))
    with pytest.raises(ValueError, match=r"length: expected at most 9, as .* has 10 tokens"):
        Windows([stream], [1], length=10, seed=0)


def test_a_shard_cut_short_missing_or_changed(tmp_path: Path) -> None:
    folder = open_folder(prepared(tmp_path, texts(60)))
    folder.check()
    path = folder.path / folder.splits["train"]["shards"][1]["file"]
    data = path.read_bytes()
    path.write_bytes(data[:-2])
    with pytest.raises(ValueError, match=rf"{path.name}: expected {len(data):,} bytes, got"):
        folder.stream("train")
    path.write_bytes(data[:10] + b"\x01" + data[11:])
    folder.stream("train")
    with pytest.raises(ValueError, match=rf"{path.name}: expected sha256"):
        folder.check()
    path.unlink()
    with pytest.raises(ValueError, match=rf"{path.name}: expected .* got no such file"):
        folder.stream("train")


def test_what_is_no_prepared_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make it with: equilm data prepare"):
        open_folder(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json: "):
        open_folder(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "equilm tokens 9"}))
    with pytest.raises(ValueError, match="expected format 'equilm tokens 1'"):
        open_folder(tmp_path)
    folder = open_folder(prepared(tmp_path, ["one"]))
    with pytest.raises(ValueError, match=r"split: expected one that .* got 'valid'"):
        folder.stream("valid")
