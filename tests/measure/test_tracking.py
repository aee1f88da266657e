"""Work by hardness and tolerance, trajectories of both modes, questions of stories."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from equilm.measure.effort import HardShares, Tolerances
from equilm.measure.stories import StoryScores, questions
from equilm.measure.trajectories import Trajectories
from equilm.nn.model import LanguageModel
from equilm.record import Record
from equilm.tasks import CatbAbI, CatbAbIConfig, Labels, WordProblem, WordProblemConfig
from tests.measure.models import small
from tests.tasks.folders import babi

TASK = WordProblem(WordProblemConfig(group="S3"))


def by_name(records: Iterable[Record]) -> dict[str, Record]:
    return {record.name: record for record in records}


def series(record: Record) -> list[float]:
    assert isinstance(record.value, list)
    return record.value


def test_all_tokens_are_easy_and_hard_ones_together() -> None:
    shares = (0.2, 0.6)
    found = by_name(HardShares(shares=shares, length=40, batch_size=8).records(small(), TASK))
    assert series(found["hard_shares"]) == [0.2, 0.6]
    assert {(r.tolerance, r.max_steps) for r in found.values()} == {(0.01, 64)}
    assert all(0 <= one <= 1 for one in series(found["accuracy_by_hard_share"]))
    for index, share in enumerate(shares):
        every, easy, hard = (
            series(found[f"evaluations{kind}_by_hard_share"])[index]
            for kind in ("", "_easy", "_hard")
        )
        batch = WordProblem(replace(TASK.config, identity_probability=1 - share)).batch(
            split="test", length=40, batch_size=8, seed=0, index=0
        )
        drawn = (batch.tokens_BT != TASK.monoid.identity).float().mean().item()
        assert every == pytest.approx(drawn * hard + (1 - drawn) * easy, rel=1e-5)


def test_an_explicit_model_has_no_evaluations() -> None:
    explicit = small(implicit=False)
    found = by_name(HardShares(shares=(0.5,), length=10).records(explicit, TASK))
    assert set(found) == {"hard_shares", "accuracy_by_hard_share"}
    assert {(r.tolerance, r.max_steps) for r in found.values()} == {(None, None)}


def test_a_looser_tolerance_takes_fewer_evaluations() -> None:
    found = by_name(Tolerances(tolerances=(1e-4, 1e-2, 0.3), length=12).records(small(), TASK))
    taken = series(found["evaluations_by_tolerance"])
    assert taken[0] > taken[1] > taken[2] >= 1
    assert {(r.tolerance, r.max_steps) for r in found.values()} == {(None, 64)}


def test_both_modes_end_at_one_point() -> None:
    found = list(
        Trajectories(length=4, sweeps=30, batch_size=2, test_length=12).records(small(), TASK)
    )
    told = by_name(found)
    assert told["modes_apart"].value == pytest.approx(0, abs=1e-4)
    assert told["perplexity_difference"].value == pytest.approx(0, abs=0.05)
    paths = {(r.name, r.window, r.row): series(r) for r in found if r.name.startswith("traj")}
    assert len(paths) == 2 * 2 * 4
    for axis in ("trajectory_x", "trajectory_y"):
        for row in range(4):
            one, all_at_once = paths[axis, 1, row], paths[axis, 4, row]
            assert len(one) == len(all_at_once) == 31
            # The same start and end, another way for all but the first token.
            assert one[0] == pytest.approx(all_at_once[0], abs=1e-5)
            assert one[-1] == pytest.approx(all_at_once[-1], abs=1e-3)
    assert paths["trajectory_x", 1, 0] == pytest.approx(paths["trajectory_x", 4, 0], abs=1e-4)
    assert paths["trajectory_x", 1, 3] != pytest.approx(paths["trajectory_x", 4, 3], abs=1e-3)


def test_a_question_is_right_if_every_word_of_it_is() -> None:
    counted = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 1, 1]]).bool()
    correct = torch.tensor([[0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1]]).bool()
    places = torch.arange(12).view(2, 6)
    found = questions(correct, counted, places, Labels(places + 100, places + 1))
    assert found.right.tolist() == [False, True, False, True]
    assert found.label.tolist() == [101, 104, 106, 110]
    assert found.position.tolist() == [2, 5, 7, 11]
    assert found.steps.tolist() == [1, 4, 6, 10]


@pytest.mark.parametrize("window", [None, 1])
def test_stories_are_scored_by_task_and_length(tmp_path: Path, window: int | None) -> None:
    task = CatbAbI(CatbAbIConfig(folder=babi(tmp_path), tasks=(1, 19)))
    config = replace(small().config, vocab_size=task.vocab_size)
    reader = LanguageModel(config, generator=torch.Generator().manual_seed(0)).eval()
    scores = StoryScores(length=40, batch_size=2, window=window)
    found = by_name(scores.records(reader, task))
    assert found["questions"].value == 4.0
    assert series(found["questions_by_task"]) == [0, 3, *[0] * 17, 1]
    by_task = series(found["accuracy_by_task"])
    assert math.isnan(by_task[2])
    assert found["accuracy"].value == pytest.approx((3 * by_task[1] + by_task[19]) / 4)
    # Questions end at the words 10, 16, 27 and 28 of their stories.
    assert series(found["questions_by_story_length"])[3:] == [1, 3]
    assert series(found["evaluations_by_story_length"])[4] >= 1
    assert found["accuracy"].window == (40 if window is None else 1)


def test_scores_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="max_batches: expected an integer >= 1, got 0"):
        StoryScores(max_batches=0)
