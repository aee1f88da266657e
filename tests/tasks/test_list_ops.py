import statistics

import pytest

from equilm.tasks.list_ops import CLOSE, END, WORDS, ListOps, ListOpsConfig, list_values, parse
from equilm.tasks.task import IGNORE

# Two lines of Nangia and Bowman's test file, with their answers.
PUBLISHED = [
    (0, "( ( ( ( ( [SM 6 ) 5 ) 9 ) 0 ) ] )"),
    (
        2,
        "( ( ( ( ( ( [SM ( ( ( ( ( [MIN ( ( ( ( ( ( [MIN 5 ) ( ( ( ( [SM 5 ) 4 ) 1 ) ] ) ) 0 ) 4 ) "
        "9 ) ] ) ) 8 ) 7 ) 6 ) ] ) ) 1 ) 1 ) 7 ) 3 ) ] )",
    ),
]


@pytest.mark.parametrize(("answer", "text"), PUBLISHED)
def test_published_lists_have_their_published_values(answer: int, text: str) -> None:
    assert list_values(parse(text))[1][-1] == answer


def test_values_in_the_order_of_closing() -> None:
    places, values = list_values(parse("[MAX 2 [MED 1 8 4 3 ] [SM 9 9 ] ]"))
    assert (places, values) == ([7, 11, 12], [3, 8, 8])


def by_recursion(words: list[str]) -> int:
    """The value of what begins here; takes its words."""
    word = words.pop(0)
    if word.isdigit():
        return int(word)
    arguments = []
    while words[0] != "]":
        arguments.append(by_recursion(words))
    words.pop(0)
    if word == "[MED":
        return int(statistics.median(arguments))
    if word == "[SM":
        return sum(arguments) % 10
    return min(arguments) if word == "[MIN" else max(arguments)


@pytest.mark.parametrize(("length", "depth"), [(30, 10), (300, 10), (300, 3)])
def test_answers_by_recursion(length: int, depth: int) -> None:
    task = ListOps(ListOpsConfig(max_depth=depth))
    batch = task.batch(split="test", length=length, batch_size=20, seed=0, index=0)
    for tokens, targets in zip(batch.tokens_BT.tolist(), batch.targets_BT.tolist(), strict=True):
        told = [WORDS[token] for token in tokens if token != END]
        assert tokens == [WORDS.index(word) for word in told] + [END] * (length - len(told))
        assert depth < 10 or len(told) >= length // 4
        answer = targets.pop(len(told) - 1)
        assert set(targets) <= {IGNORE}
        assert deepest(told) < depth
        assert by_recursion(told) == answer
        assert not told


def deepest(told: list[str]) -> int:
    opened = [word.startswith("[") - (word == "]") for word in told]
    return max(sum(opened[: place + 1]) for place in range(len(told)))


def test_every_list_is_asked_on_request() -> None:
    task = ListOps(ListOpsConfig(asked="each"))
    batch = task.batch(split="train", length=60, batch_size=9, seed=0, index=0)
    assert ((batch.targets_BT != IGNORE) == (batch.tokens_BT == CLOSE)).all()
    whole = ListOps(ListOpsConfig()).batch(split="train", length=60, batch_size=9, seed=0, index=0)
    asked_BT = whole.targets_BT != IGNORE
    assert (whole.tokens_BT == batch.tokens_BT).all()
    assert (whole.targets_BT[asked_BT] == batch.targets_BT[asked_BT]).all()


@pytest.mark.parametrize("text", ["1 ]", "[MAX 1", "1 2", "[MAX 1 2 ] 3"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="tokens: expected"):
        list_values(parse(text))


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="max_depth: expected an integer >= 2, got 1"):
        ListOpsConfig(max_depth=1)
