"""Text to ids and back, and text that is told while its tokens come."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from equilm.decode.text import Bytes, Folder, Ids, TextStream, Tokenizer, tokenizer_of

STORY = "Ein Käse, 日本語の文, 👩‍👧 family; e\u0301 and ½ — naïve… \U0001f600!"


def streamed(
    tokenizer: Tokenizer, ids: Sequence[int], stop: Sequence[str] = (), context: Sequence[int] = ()
) -> tuple[list[str], bool]:
    """Return the pieces told, the last of them at the end."""
    stream = TextStream(tokenizer, context=context, stop=stop)
    pieces = []
    for one in ids:
        pieces.append(stream.push(one))
        if stream.stopped:
            break
    return [*pieces, stream.close()], stream.stopped


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a byte-level tokenizer of 300 tokens with a chat template."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer as Own
    from tokenizers import decoders, models, pre_tokenizers, trainers

    own = Own(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    own.train_from_iterator([STORY * 5, "the cat and the hat " * 5], trainer)
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<end>")
    whole.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}"
        "{% endif %}{{ m.role }}: {{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}answer: {% endif %}"
    )
    path = tmp_path_factory.mktemp("tokenizer")
    whole.save_pretrained(path)
    return path


def test_bytes_and_ids() -> None:
    assert Bytes().encode("é!") == [0xC3, 0xA9, 0x21]
    assert Bytes().decode([0xC3, 0xA9, 300, 0x21]) == "é!"
    assert Ids().encode(" 3 1  4") == [3, 1, 4]
    assert Ids().decode([3, 1, 4]) == "3 1 4"
    with pytest.raises(ValueError, match="expected token ids such as '3 1 4', got 'to be'"):
        Ids().encode("to be")
    for tokenizer in (Bytes(), Ids()):
        with pytest.raises(ValueError, match="expected a tokenizer with a chat template, got "):
            tokenizer.chat([{"role": "user", "content": "x"}])


def test_a_folder(folder: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("", folder)
    assert isinstance(tokenizer, Folder)
    ids = tokenizer.encode(STORY)
    assert len(ids) < len(STORY.encode()) and tokenizer.decode(ids) == STORY
    (end,) = tokenizer.stop_tokens
    assert tokenizer.decode([*ids, end]) == STORY
    asked = tokenizer.chat([{"role": "user", "content": "cat"}])
    assert asked.count(end) == 1 and tokenizer.decode(asked) == "user: catanswer: "
    with pytest.raises(ValueError, match="refused by the tokenizer's template: no tools"):
        tokenizer.chat([{"role": "tool", "content": "x"}])
    assert isinstance(tokenizer_of("", tmp_path), Ids)
    assert isinstance(tokenizer_of("bytes", tmp_path), Bytes)
    with pytest.raises(ValueError, match="expected the folder of a tokenizer"):
        tokenizer_of(str(tmp_path), folder)


def test_a_character_is_told_when_it_is_whole(folder: Path) -> None:
    pieces, _ = streamed(Bytes(), "é€!".encode())
    assert pieces == ["", "é", "", "", "€", "!", ""]
    for tokenizer in (Bytes(), Folder(folder)):
        ids = tokenizer.encode(3 * STORY)
        pieces, _ = streamed(tokenizer, ids)
        assert "".join(pieces) == 3 * STORY
        # Whatever is told is text, and most of it comes with its token.
        assert all("\ufffd" not in piece for piece in pieces)
        assert sum(map(bool, pieces)) > len(ids) / 2


def test_an_incomplete_character_at_the_end_is_told_at_last() -> None:
    assert streamed(Bytes(), "a€".encode()[:-1])[0] == ["a", "", "", "\ufffd"]


@pytest.mark.parametrize("seed", range(5))
def test_nonsense_is_told_as_it_would_be_whole(seed: int, folder: Path) -> None:
    draw = random.Random(seed)
    own = Folder(folder)
    for tokenizer, known in ((Bytes(), 256), (own, 300)):
        ids = [draw.randrange(known) for _ in range(200)]
        pieces, _ = streamed(tokenizer, ids)
        whole = tokenizer.decode(ids)
        # A run of broken bytes may be counted differently where it is cut.
        assert "".join(pieces).replace("\ufffd", "") == whole.replace("\ufffd", "")
        assert abs(len("".join(pieces)) - len(whole)) <= 3


def test_ids_go_on_behind_their_context() -> None:
    assert streamed(Ids(), [1, 4])[0] == ["1", " 4", ""]
    assert streamed(Ids(), [1, 4], context=[3] * 20)[0] == [" 1", " 4", ""]
    pieces, _ = streamed(Bytes(), "€x".encode()[2:], context="a€".encode()[:3])
    assert pieces == ["€", "x", ""]


@pytest.mark.parametrize(
    ("text", "stop", "told"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three"], "one two "),
        ("one two three", ["threes"], "one two three"),
        ("one two three", [], "one two three"),
        ("one two three", ["two", "e t"], "on"),
        ("aaab", ["aab"], "a"),
        ("xabababc", ["ababc"], "xab"),
        ("日本語", ["本"], "日"),
        ("two", ["two"], ""),
    ],
)
def test_nothing_of_a_stop_string_is_told(
    text: str, stop: list[str], told: str, folder: Path
) -> None:
    for tokenizer in (Bytes(), Folder(folder)):
        pieces, stopped = streamed(tokenizer, tokenizer.encode(text), stop)
        assert "".join(pieces) == told
        assert stopped == (told != text)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    pieces, _ = streamed(Bytes(), b"a<b<end", stop=["<end>"])
    assert pieces == ["a", "", "<b", "", "", "", "", "<end"]


def test_after_a_stop_string_nothing_is_told() -> None:
    stream = TextStream(Bytes(), stop=["b"])
    assert [stream.push(byte) for byte in b"abc"] == ["a", "", ""]
    assert stream.close() == "" and stream.stopped
    with pytest.raises(ValueError, match="stop: expected strings of at least one character"):
        TextStream(Bytes(), stop=["x", ""])


def test_words_do_not_lose_their_spaces(folder: Path) -> None:
    metaspace = _WordPieces(["▁the", "▁cat", "s"])
    assert "".join(streamed(metaspace, [1, 2, 0], context=[0])[0]) == " cats the"


class _WordPieces:
    """A tokenizer whose first word has no space before it, as those of sentences have."""

    stop_tokens = begin_tokens = ()
    num_ids = 0

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.words[one] for one in ids).replace("▁", " ").removeprefix(" ")

    def chat(self, messages: Any) -> list[int]:
        raise NotImplementedError
