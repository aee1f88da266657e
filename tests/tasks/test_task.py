import math
from pathlib import Path
from typing import Any

import pytest
import torch

from equilm.tasks import (
    IGNORE,
    SPLITS,
    TASKS,
    Batch,
    Task,
    TextConfig,
    WordProblemConfig,
    build_task,
    cross_entropy_sum,
    scores,
)
from equilm.tasks.task import position_generator
from tests.data.corpus import prepared, texts
from tests.tasks.folders import settings_of

POSITION: dict[str, Any] = {"split": "train", "length": 120, "batch_size": 5, "seed": 3, "index": 7}


@pytest.fixture(params=sorted(TASKS))
def task(request: pytest.FixtureRequest, tmp_path: Path) -> Task:
    if request.param == "text":
        folder = prepared(tmp_path, texts(300), valid_share=0.2, test_share=0.2)
        return build_task(TextConfig(sources=(str(folder),)))
    return build_task(settings_of(request.param, tmp_path))


def test_batch_has_the_asked_shape_and_valid_values(task: Task) -> None:
    tokens, targets = task.batch(**POSITION)
    assert tokens.shape == targets.shape == (5, 120)
    assert tokens.dtype == targets.dtype == torch.int64
    assert tokens.min() >= 0
    assert tokens.max() < task.vocab_size
    asked = targets[targets != IGNORE]
    assert asked.min() >= 0
    assert asked.max() < task.vocab_size


def test_same_position_same_batch_whatever_came_between(task: Task) -> None:
    first = task.batch(**POSITION)
    task.batch(**{**POSITION, "index": 8})
    torch.manual_seed(1)
    again = task.batch(**POSITION)
    assert torch.equal(first.tokens_BT, again.tokens_BT)
    assert torch.equal(first.targets_BT, again.targets_BT)


@pytest.mark.parametrize("change", [{"seed": 4}, {"index": 8}, {"split": "valid"}])
def test_another_position_is_another_batch(task: Task, change: dict[str, Any]) -> None:
    other = task.batch(**{**POSITION, **change})
    assert not torch.equal(task.batch(**POSITION).tokens_BT, other.tokens_BT)


def test_splits_never_share_a_stream() -> None:
    # The CPU generator keeps 32 bits of its seed, so those are what must differ.
    streams = {
        split: {
            position_generator(split=split, length=16, seed=0, index=index).initial_seed()
            for index in range(2000)
        }
        for split in SPLITS
    }
    assert all(seed < 2**32 for seeds in streams.values() for seed in seeds)
    assert all(len(seeds) == 2000 for seeds in streams.values())
    assert len(set.union(*streams.values())) == 6000


def test_stream_is_the_same_on_every_platform() -> None:
    generator = position_generator(split="test", length=20, seed=1, index=2)
    assert generator.initial_seed() == 3240870482
    assert torch.randint(6, (8,), generator=generator).tolist() == [1, 4, 1, 4, 4, 1, 3, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "tset"}, "split: expected one of train, valid, test; got 'tset', .*'test'"),
        ({"length": 0}, "length: expected an integer >= 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected an integer >= 1, got 0"),
        ({"index": -1}, "index: expected an integer >= 0, got -1"),
    ],
)
def test_impossible_position_is_named(task: Task, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task.batch(**{**POSITION, **change})


def test_unknown_kind_names_the_nearest() -> None:
    kind: Any = "word_problme"
    config = WordProblemConfig(kind=kind)
    with pytest.raises(ValueError, match="got 'word_problme', nearest is 'word_problem'"):
        build_task(config)


def test_cross_entropy_against_known_values() -> None:
    logits = torch.tensor([[[0.0, 0.0], [math.log(3.0), 0.0]], [[5.0, -5.0], [0.0, 0.0]]])
    targets = torch.tensor([[0, 1], [IGNORE, IGNORE]])
    total, count = cross_entropy_sum(logits, targets)
    assert (total.dtype, count.dtype) == (torch.float32, torch.int64)
    assert total.item() == pytest.approx(math.log(2.0) + math.log(4.0), rel=1e-6)
    assert count.item() == 2


def test_cross_entropy_sums_split_over_microbatches() -> None:
    logits, targets = torch.randn(6, 5, 11), torch.randint(11, (6, 5))
    whole, count = cross_entropy_sum(logits, targets)
    parts = [cross_entropy_sum(logits[rows], targets[rows]) for rows in (slice(2), slice(2, 6))]
    assert whole.item() == pytest.approx(sum(total.item() for total, _ in parts), rel=1e-6)
    assert count == sum(number for _, number in parts)


def test_cross_entropy_is_computed_in_float32() -> None:
    logits, targets = torch.randn(2, 64, 7, dtype=torch.bfloat16), torch.randint(7, (2, 64))
    total, _ = cross_entropy_sum(logits, targets)
    exact, _ = cross_entropy_sum(logits.float(), targets)
    assert torch.equal(total, exact)


def test_cross_entropy_of_nothing_is_zero_with_zero_gradient() -> None:
    logits = torch.randn(1, 3, 4, requires_grad=True)
    total, count = cross_entropy_sum(logits, torch.full((1, 3), IGNORE))
    (gradient,) = torch.autograd.grad(total, logits)
    assert (total.item(), count.item(), gradient.abs().max().item()) == (0.0, 0, 0.0)


def test_scores_by_token() -> None:
    logits = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]])
    targets = torch.tensor([[0, 2, IGNORE]])
    correct, counted, loss = scores(logits, Batch(targets, targets))
    assert correct.tolist() == [[True, False, False]]
    assert counted.tolist() == [[True, True, False]]
    right = math.log(math.exp(2.0) + 2.0) - 2.0
    assert loss.dtype == torch.float32
    assert loss.tolist() == [pytest.approx([right, right + 2.0, 0.0], abs=1e-6)]


def test_scores_carry_no_gradient() -> None:
    logits = torch.randn(1, 3, 4, requires_grad=True)
    targets = torch.zeros(1, 3, dtype=torch.int64)
    assert not scores(logits, Batch(targets, targets)).loss_BT.requires_grad


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected shape \(\*\(2, 4\), V\) .* got \(2, 3, 5\)"):
        cross_entropy_sum(torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.int64))
