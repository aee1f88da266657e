from pathlib import Path
from typing import Any

import pytest
import torch

from equilm.config import ConfigError, decode, encode
from equilm.tasks.task import IGNORE
from equilm.tasks.text import Text, TextConfig
from tests.data.corpus import prepared, texts

END = 256
POSITION: dict[str, Any] = {"split": "train", "length": 16, "seed": 5}


def make(*folders: Path, **settings: Any) -> Text:
    return Text(TextConfig(sources=tuple(map(str, folders)), **settings))


def test_a_target_is_the_next_token_of_the_documents(tmp_path: Path) -> None:
    documents = texts(40)
    task = make(prepared(tmp_path, documents))
    stream = [id for one in documents for id in (*one.encode(), END)]
    whole = " ".join(map(str, stream))
    tokens, targets = task.batch(**POSITION, batch_size=12, index=0)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    for row, last in zip(tokens.tolist(), targets[:, -1].tolist(), strict=True):
        assert " ".join(map(str, [*row, last])) in whole
    assert (targets != IGNORE).all()


def test_every_token_is_a_target_once_an_epoch(tmp_path: Path) -> None:
    documents = texts(40)
    task = make(prepared(tmp_path, documents))
    stream = [id for one in documents for id in (*one.encode(), END)]
    steps = (len(stream) - 1) // 16
    found = torch.cat(
        [task.batch(**POSITION, batch_size=1, index=index).targets_BT for index in range(steps)]
    )
    counted = torch.bincount(found.flatten(), minlength=257)
    expected = torch.bincount(torch.tensor(stream), minlength=257)
    # Less than a window is left over.
    assert (expected - counted).min() >= 0
    assert (expected - counted).sum() <= 16


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_any_number_of_ranks_reads_the_batch_of_a_step(tmp_path: Path, world_size: int) -> None:
    one, other = prepared(tmp_path, texts(40)), prepared(tmp_path, texts(90, seed=1), name="o")
    task = make(one, other, weights=(0.25, 0.75))
    per_rank = 8 // world_size
    for step in (0, 7, 500):
        whole = task.batch(**POSITION, batch_size=8, index=step)
        # The rows of a rank, read as that rank's own smaller batches would be.
        parts = [
            task.batch(**POSITION, batch_size=per_rank, index=step * world_size + rank)
            for rank in range(world_size)
        ]
        assert torch.equal(torch.cat([part.tokens_BT for part in parts]), whole.tokens_BT)
        assert torch.equal(torch.cat([part.targets_BT for part in parts]), whole.targets_BT)


def test_a_task_made_anew_goes_on_where_another_stopped(tmp_path: Path) -> None:
    folder = prepared(tmp_path, texts(40))
    first = make(folder)
    before = [first.batch(**POSITION, batch_size=3, index=index) for index in range(12)]
    again = make(folder).batch(**POSITION, batch_size=3, index=11)
    assert torch.equal(again.tokens_BT, before[11].tokens_BT)


def test_where_a_state_begins_anew(tmp_path: Path) -> None:
    folder = prepared(tmp_path, texts(40))
    assert make(folder).reset_token == END
    assert make(folder, boundaries="carry").reset_token is None


def test_sources_of_different_tokenizers(tmp_path: Path) -> None:
    one, other = prepared(tmp_path, texts(9)), prepared(tmp_path, texts(9), name="other")
    text = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(text.replace('"digest": "bytes"', '"digest": "else"'))
    with pytest.raises(ValueError, match="sources: expected one tokenizer, got bytes in"):
        make(one, other)


def test_only_splits_that_every_source_has(tmp_path: Path) -> None:
    one = prepared(tmp_path, texts(40), valid_share=0.3)
    task = make(one, prepared(tmp_path, texts(40), name="other"))
    assert task.splits == ("train",)
    with pytest.raises(ValueError, match=r"split: expected one that .*other has, got 'valid'"):
        task.batch(**{**POSITION, "split": "valid"}, batch_size=1, index=0)


def test_settings(tmp_path: Path) -> None:
    config = TextConfig(sources=("a", "b"), weights=(1.0, 2.0), boundaries="carry")
    assert decode(TextConfig, encode(config)) == config
    with pytest.raises(ConfigError, match="sources: missing"):
        decode(TextConfig, {"kind": "text"})
    with pytest.raises(ValueError, match="sources: expected one folder"):
        TextConfig(sources=())
    with pytest.raises(ValueError, match="weights: expected 2 numbers"):
        TextConfig(sources=("a", "b"), weights=(1.0,))
