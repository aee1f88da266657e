import math
import time

import pytest
import torch

from equilm.config import ConfigError, decode, encode
from equilm.tasks.groups import parse
from equilm.tasks.word_problem import WordProblem, WordProblemConfig, prefix_products


def make(group: str, identity_probability: float | None = None) -> WordProblem:
    return WordProblem(WordProblemConfig(group=group, identity_probability=identity_probability))


@pytest.mark.parametrize("group", ["S3", "S5", "A5"])
@pytest.mark.parametrize("length", [1, 2, 3, 63, 100])
def test_targets_are_composed_permutations(group: str, length: int) -> None:
    task = make(group)
    tokens, targets = task.batch(split="train", length=length, batch_size=3, seed=0, index=0)
    for row_tokens, row_targets in zip(tokens.tolist(), targets.tolist(), strict=True):
        where = list(range(len(task.monoid.elements[0])))
        for token, target in zip(row_tokens, row_targets, strict=True):
            where = [int(task.monoid.elements[token][point]) for point in where]
            assert task.monoid.elements[target] == "".join(map(str, where))


@pytest.mark.parametrize(("group", "modulus"), [("Z2", 2), ("Z7", 7), ("Z60", 60)])
def test_parity_and_modular_addition(group: str, modulus: int) -> None:
    batch = make(group).batch(split="test", length=130, batch_size=4, seed=1, index=5)
    assert torch.equal(batch.targets_BT, batch.tokens_BT.cumsum(1) % modulus)


@pytest.mark.parametrize("group", ["M4", "S3xM4"])
def test_targets_of_a_monoid_follow_its_table(group: str) -> None:
    task = make(group, 0.6)
    tokens, targets = task.batch(split="valid", length=37, batch_size=8, seed=2, index=1)
    state = torch.full((8,), task.monoid.identity)
    for position in range(37):
        state = task.monoid.table_QQ[state, tokens[:, position]]
        assert torch.equal(targets[:, position], state)


@pytest.mark.parametrize("cut", [1, 7, 64, 99])
def test_targets_of_a_prefix_are_the_prefix_of_the_targets(cut: int) -> None:
    task = make("S5")
    tokens, targets = task.batch(split="train", length=100, batch_size=4, seed=0, index=0)
    assert torch.equal(prefix_products(tokens[:, :cut], task.monoid.table_QQ), targets[:, :cut])


def test_prefix_products_leave_the_tokens_alone() -> None:
    tokens = torch.randint(6, (2, 33))
    before = tokens.clone()
    prefix_products(tokens, parse("S3").table_QQ)
    assert torch.equal(tokens, before)


@pytest.mark.parametrize("group", ["Z2", "S3", "A5", "S3xM4"])
@pytest.mark.parametrize("chance", [None, 0.0, 0.5, 0.9])
def test_identity_appears_as_often_as_asked(group: str, chance: float | None) -> None:
    task = make(group, chance)
    tokens, _ = task.batch(split="train", length=200, batch_size=200, seed=4, index=0)
    counts = tokens.flatten().bincount(minlength=task.vocab_size).double()
    others = task.vocab_size - 1
    identity = 1 / task.vocab_size if chance is None else chance
    expected = torch.full((task.vocab_size,), (1 - identity) / others, dtype=torch.float64)
    expected[task.monoid.identity] = identity
    spread = (40_000 * expected * (1 - expected)).sqrt()
    assert (counts - 40_000 * expected).abs()[task.monoid.identity] <= 4 * spread[0]
    # 24 elements in 16 cases: 5 sigma keeps a false alarm below 1 in 2,000.
    assert ((counts - 40_000 * expected).abs() <= 5 * spread).all()


@pytest.mark.parametrize("chance", [-0.1, 1.0, 1.5, math.nan])
def test_identity_probability_out_of_range_is_refused(chance: float) -> None:
    with pytest.raises(ValueError, match="identity_probability: expected None or 0 <= p < 1, got"):
        make("S3", chance)


def test_unknown_group_is_refused_by_the_config() -> None:
    with pytest.raises(ValueError, match="got 's5' in 's5', nearest is 'S5'"):
        WordProblemConfig(group="s5")


def test_config_reads_back_what_it_wrote() -> None:
    config = WordProblemConfig(group="A5xM4", identity_probability=0.9)
    assert decode(WordProblemConfig, encode(config)) == config
    with pytest.raises(ConfigError, match="got 'A8' in 'A8', nearest is 'A7'"):
        decode(WordProblemConfig, {"group": "A8"})


def test_name_tells_tasks_apart() -> None:
    assert make("S_5*M4").name == "word_problem S5xM4"
    assert make("S5", 0.9).name == "word_problem S5 p=0.9"


@pytest.mark.parametrize("group", ["S3", "S5xM4"])
def test_a_million_tokens_a_second_on_one_core(group: str) -> None:
    task = make(group, 0.5)
    seconds = []
    for index in range(5):
        start = time.perf_counter()
        task.batch(split="train", length=256, batch_size=64, seed=0, index=index)
        seconds.append(time.perf_counter() - start)
    assert 64 * 256 / min(seconds) >= 1e6
