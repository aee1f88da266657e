"""Copying, induction heads and associative recall: answers by brute force, and what they ask."""

import pytest
import torch

from equilm.tasks.associative_recall import AssociativeRecall, AssociativeRecallConfig
from equilm.tasks.copying import Copying, CopyingConfig
from equilm.tasks.induction import Induction, InductionConfig
from equilm.tasks.task import IGNORE, Batch, Task


def batch_of(task: Task, length: int, batch_size: int = 64) -> Batch:
    return task.batch(split="train", length=length, batch_size=batch_size, seed=1, index=2)


def test_copying_asks_for_the_items_in_their_order() -> None:
    for placed in ("start", "scattered"):
        task = Copying(CopyingConfig(items=5, vocabulary=9, placed=placed))
        batch = batch_of(task, 23)
        for tokens, targets in zip(
            batch.tokens_BT.tolist(), batch.targets_BT.tolist(), strict=True
        ):
            assert tokens[18:] == [1] * 5
            assert targets[:18] == [IGNORE] * 18
            assert [token for token in tokens[:18] if token] == targets[18:]
            assert (0 not in tokens[:5]) or placed == "scattered"


def test_scattered_items_stand_everywhere() -> None:
    task = Copying(CopyingConfig(items=2, vocabulary=4))
    counts_T = (batch_of(task, 12, 4000).tokens_BT[:, :10] > 0).sum(0)
    # Each place with chance 2/10: 800, standard deviation 25.
    assert (counts_T - 800).abs().max() < 130
    assert set(batch_of(task, 12).tokens_BT.unique().tolist()) == {0, 1, 2, 3}


def test_induction_asks_what_followed_the_mark() -> None:
    batch = batch_of(Induction(InductionConfig(vocabulary=6)), 17, 400)
    for tokens, targets in zip(batch.tokens_BT.tolist(), batch.targets_BT.tolist(), strict=True):
        assert tokens.count(0) == 2 and tokens[-1] == 0
        assert targets == [IGNORE] * 16 + [tokens[tokens.index(0) + 1]]
    assert set(batch.targets_BT[:, -1].tolist()) == {1, 2, 3, 4, 5}
    firsts_B = (batch.tokens_BT == 0).int().argmax(1)
    assert set(firsts_B.tolist()) == set(range(15))


def test_each_key_is_asked_once() -> None:
    task = AssociativeRecall(AssociativeRecallConfig(pairs=4, vocabulary=32))
    batch = batch_of(task, 40, 200)
    for tokens, targets in zip(batch.tokens_BT.tolist(), batch.targets_BT.tolist(), strict=True):
        value_of = dict(zip(tokens[:8:2], tokens[1:8:2], strict=True))
        assert len(value_of) == len(set(value_of.values())) == 4
        assert max(value_of) < 16 <= min(value_of.values())
        asked = [place for place, target in enumerate(targets) if target != IGNORE]
        assert all(place >= 8 and place % 2 == 0 for place in asked)
        assert {tokens[place]: targets[place] for place in asked} == value_of


def test_short_gaps_are_the_commonest() -> None:
    task = AssociativeRecall(AssociativeRecallConfig(pairs=1, vocabulary=32))
    asked_BT = batch_of(task, 34, 8000).targets_BT[:, 2::2] != IGNORE
    expected_T = torch.arange(1, 17) ** (0.01 - 1)
    share_T = asked_BT.float().mean(0)
    torch.testing.assert_close(share_T, expected_T / expected_T.sum(), atol=0.02, rtol=0)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="length: expected an integer >= 10, got 9"):
        batch_of(Copying(CopyingConfig(items=5)), 9)
    with pytest.raises(ValueError, match="length: expected an integer >= 3, got 2"):
        batch_of(Induction(InductionConfig()), 2)
    with pytest.raises(ValueError, match="length: expected an integer >= 16, got 15"):
        batch_of(AssociativeRecall(AssociativeRecallConfig(pairs=4)), 15)
    with pytest.raises(
        ValueError, match="vocabulary: expected an integer >= 10 for 4 pairs, got 9"
    ):
        AssociativeRecallConfig(pairs=4, vocabulary=9)
    with pytest.raises(ValueError, match="items: expected an integer >= 1, got 0"):
        CopyingConfig(items=0)
    with pytest.raises(ValueError, match="vocabulary: expected an integer >= 3, got 2"):
        InductionConfig(vocabulary=2)
