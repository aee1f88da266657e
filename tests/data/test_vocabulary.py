from pathlib import Path
from typing import Any

import pytest

from equilm.data import PrepareConfig, VocabularyConfig, learn_vocabulary, open_folder
from equilm.data.tokenizer import load_tokenizer
from equilm.decode.text import Folder
from tests.data.corpus import finish, texts, write

pytest.importorskip("tokenizers")


def learn(folder: Path, documents: list[str], **settings: Any) -> int:
    source = write(folder / "d.jsonl", documents)
    config = {"sources": (source,), "out": folder / "own", "size": 300, **settings}
    return learn_vocabulary(VocabularyConfig(**config))


def test_any_text_is_written_in_it_and_comes_back(tmp_path: Path) -> None:
    assert learn(tmp_path, texts(50)) == 300
    tokenizer = load_tokenizer(str(tmp_path / "own"))
    own = Folder(tmp_path / "own")
    for text in (texts(1)[0], "  never\tseen: \u00e9\U0001f40d\n", "<|endoftext|>"):
        ids = tokenizer.encode(text).tolist()
        assert tokenizer.end_token not in ids
        assert own.decode(ids) == text
    assert own.stop_tokens == (tokenizer.end_token,)
    assert len(tokenizer.encode("the cat sat")) < len(b"the cat sat")


def test_documents_are_prepared_with_it(tmp_path: Path) -> None:
    documents = texts(50)
    learn(tmp_path, documents)
    source = write(tmp_path / "d.jsonl", documents)
    finish(PrepareConfig(train=(source,), out=tmp_path / "o", tokenizer=str(tmp_path / "own")))
    told = open_folder(tmp_path / "o").splits["train"]
    assert told["bytes"] / told["tokens"] > 1.5


def test_only_so_much_text_is_learnt_from(tmp_path: Path) -> None:
    few, more = learn(tmp_path, ["ab"] * 5, megabytes=1e-6), learn(tmp_path, ["ab", "cd cd"])
    assert few == 256 + 1 + 1
    assert more > few


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"size": 256}, "size: expected more than 256"),
        ({"sources": ()}, "sources: expected one source"),
        ({"megabytes": 0.0}, "megabytes: expected"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        learn(tmp_path, ["a"], **change)


def test_only_empty_sources(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only empty sources"):
        learn(tmp_path, [])
    assert not (tmp_path / "own").exists()
