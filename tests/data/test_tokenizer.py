import json
from pathlib import Path

import pytest

from equilm.data import PrepareConfig, open_folder
from equilm.data.tokenizer import load_tokenizer
from tests.data.corpus import finish, write

tokenizers = pytest.importorskip("tokenizers")


def save_tokenizer(folder: Path, *, special: str = "<|endoftext|>", size: int = 300) -> Path:
    """Train a small tokenizer, and return its folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[special], initial_alphabet=alphabet, show_progress=False
    )
    own.train_from_iterator(["the cat sat on the mat"] * 20, trainer)
    folder.mkdir()
    own.save(str(folder / "tokenizer.json"))
    return folder


def test_bytes() -> None:
    tokenizer = load_tokenizer("bytes")
    assert tokenizer.encode("aß").tolist() == [97, 195, 159]
    assert (tokenizer.vocab_size, tokenizer.end_token, tokenizer.dtype) == (257, 256, "<u2")
    with pytest.raises(ValueError, match="end_token: expected none with bytes"):
        load_tokenizer("bytes", "</s>")


def test_a_folder_and_its_file_are_the_same(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "t")
    tokenizer = load_tokenizer(str(folder))
    same = load_tokenizer(str(folder / "tokenizer.json"))
    assert tokenizer.digest == same.digest
    assert tokenizer.encode("the cat").tolist() == same.encode("the cat").tolist()
    own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("the cat on the mat").tolist() == own.encode("the cat on the mat").ids


def test_a_document_that_spells_the_end_token_does_not_hold_it(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(save_tokenizer(tmp_path / "t")))
    ids = tokenizer.encode("the <|endoftext|> cat")
    assert tokenizer.end_token not in ids.tolist()
    own = tokenizers.Tokenizer.from_file(str(tmp_path / "t" / "tokenizer.json"))
    assert own.decode(ids.tolist(), skip_special_tokens=False).replace(" ", "")


def test_the_end_token_of_the_configuration_comes_first(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "t", special="</s>")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert load_tokenizer(str(folder)).end_token == vocabulary["</s>"]
    load_tokenizer.cache_clear()
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "a"}}))
    assert load_tokenizer(str(folder)).end_token == vocabulary["a"]
    assert load_tokenizer(str(folder), "b").end_token == vocabulary["b"]
    with pytest.raises(ValueError, match=r"end_token: expected a token of .*, got <none>"):
        load_tokenizer(str(folder), "<none>")


def test_a_tokenizer_without_a_usual_end(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "t", special="<pad>")
    with pytest.raises(ValueError, match="got none, and it has no usual one"):
        load_tokenizer(str(folder))


def test_what_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: expected a tokenizer"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(("size", "dtype"), [(2**16, "<u2"), (2**16 + 1, "<u4")])
def test_shards_are_as_wide_as_the_vocabulary_asks(tmp_path: Path, size: int, dtype: str) -> None:
    vocabulary = {f"w{number}": number for number in range(size - 1)} | {"</s>": size - 1}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    own.save(str(tmp_path / "tokenizer.json"))
    last = f"w{size - 2}"
    source = write(tmp_path / "d.jsonl", [f"w1 {last}"])
    finish(PrepareConfig(train=(source,), out=tmp_path / "out", tokenizer=str(tmp_path)))
    folder = open_folder(tmp_path / "out")
    assert (folder.dtype, folder.vocab_size) == (dtype, size)
    assert folder.stream("train").read(0, 3).tolist() == [1, size - 2, size - 1]
