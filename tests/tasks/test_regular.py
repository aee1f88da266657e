import time
from itertools import pairwise
from typing import get_args

import pytest
import torch

from equilm.tasks.regular import Language, Regular, RegularConfig
from equilm.tasks.task import IGNORE

LANGUAGES = get_args(Language)


def rows(config: RegularConfig, length: int = 60, batch_size: int = 40) -> list[list[list[str]]]:
    """Words and answers of some rows, as text; the answer is "" where nothing is asked."""
    task = Regular(config)
    batch = task.batch(split="train", length=length, batch_size=batch_size, seed=1, index=2)
    answers = [
        ["" if target == IGNORE else task.words[target] for target in row]
        for row in batch.targets_BT.tolist()
    ]
    words = [[task.words[token] for token in row] for row in batch.tokens_BT.tolist()]
    return [list(pair) for pair in zip(words, answers, strict=True)]


def prefixes(words: list[str]) -> list[list[str]]:
    return [words[: end + 1] for end in range(len(words))]


def test_parity_and_even_pairs_by_counting() -> None:
    for words, answers in rows(RegularConfig(language="parity")):
        assert answers == [str(prefix.count("1") % 2) for prefix in prefixes(words)]
    for words, answers in rows(RegularConfig(language="even_pairs")):
        changes = [sum(a != b for a, b in pairwise(prefix)) for prefix in prefixes(words)]
        assert answers == [str(count % 2) for count in changes]


@pytest.mark.parametrize("size", [2, 5, 7])
def test_cycle_by_walking(size: int) -> None:
    for words, answers in rows(RegularConfig(language="cycle", size=size)):
        place, expected = 0, []
        for word in words:
            place = (place + {"0": 0, "1": 1, "2": -1}[word]) % size
            expected.append(str(place))
        assert answers == expected


def innermost(prefix: list[str]) -> str:
    """The part of a prefix that stands in its innermost open bracket."""
    open_at, stack = 0, []
    for index, word in enumerate(prefix):
        if word == "(":
            stack.append(index + 1)
        if word == ")":
            stack.pop()
    open_at = stack[-1] if stack else 0
    return "".join(prefix[open_at:])


@pytest.mark.parametrize("language", ["modular", "modular_brackets"])
@pytest.mark.parametrize("size", [3, 5])
def test_arithmetic_by_python(language: Language, size: int) -> None:
    deepest = 0
    for words, answers in rows(RegularConfig(language=language, size=size, max_depth=3)):
        for prefix, answer in zip(prefixes(words), answers, strict=True):
            deepest = max(deepest, prefix.count("(") - prefix.count(")"))
            if prefix[-1] in "+-*(":
                assert answer == ""
            else:
                assert answer == str(eval(innermost(prefix)) % size)
    assert deepest == (3 if language == "modular_brackets" else 0)


def test_flip_flop_remembers_the_last_write() -> None:
    asked = 0
    for words, answers in rows(RegularConfig(language="flip_flop"), length=101):
        stored = ""
        assert words[0] == "write"
        for index, (word, answer) in enumerate(zip(words, answers, strict=True)):
            follows = words[index + 1] if index + 1 < len(words) else None
            assert (word in ("write", "read", "ignore")) == (index % 2 == 0)
            assert answer == (stored if word == "read" else "")
            if word == "read" and follows is not None:
                assert follows == stored
            if word == "write" and follows is not None:
                stored = follows
            asked += word == "read"
    assert asked > 100


@pytest.mark.parametrize("kinds", [1, 2, 4])
def test_dyck_by_a_stack(kinds: int) -> None:
    deepest = 0
    for words, answers in rows(RegularConfig(language="dyck", size=kinds, max_depth=5)):
        stack: list[str] = []
        for word, answer in zip(words, answers, strict=True):
            if word.startswith("("):
                stack.append(word[1:])
            else:
                assert word == f"){stack.pop()}"
            assert answer == (f"){stack[-1]}" if stack else "none")
            deepest = max(deepest, len(stack))
    assert deepest == 5


@pytest.mark.parametrize("language", LANGUAGES)
def test_tokens_and_answers_are_words(language: Language) -> None:
    task = Regular(RegularConfig(language=language))
    batch = task.batch(split="test", length=500, batch_size=4, seed=0, index=0)
    assert batch.tokens_BT.shape == (4, 500)
    assert int(batch.tokens_BT.max()) < task.vocab_size == len(task.words)
    asked = batch.targets_BT[batch.targets_BT != IGNORE]
    assert 0 <= int(asked.min()) <= int(asked.max()) < task.vocab_size
    assert len(asked.unique()) > 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_million_tokens_a_second_on_one_core(language: Language) -> None:
    task, seconds = Regular(RegularConfig(language=language)), []
    for index in range(5):
        began = time.process_time()
        task.batch(split="train", length=256, batch_size=256, seed=0, index=index)
        seconds.append(time.process_time() - began)
    assert 256 * 256 / min(seconds) >= 1e6


def test_names_and_errors() -> None:
    assert Regular(RegularConfig(language="dyck", size=3)).name == "dyck 3"
    assert Regular(RegularConfig(language="modular")).name == "modular 5"
    assert Regular(RegularConfig()).name == "parity"
    with pytest.raises(ValueError, match="size: expected an integer >= 2, got 1"):
        RegularConfig(language="cycle", size=1)
    with pytest.raises(ValueError, match="max_depth: expected an integer >= 1, got 0"):
        RegularConfig(language="dyck", max_depth=0)


def test_languages_take_only_their_own_random_numbers() -> None:
    task = Regular(RegularConfig(language="modular_brackets"))
    first = task.batch(split="train", length=30, batch_size=3, seed=0, index=0)
    torch.manual_seed(5)
    again = task.batch(split="train", length=30, batch_size=3, seed=0, index=0)
    assert torch.equal(first.targets_BT, again.targets_BT)
