"""Known attractors are found, followed, and what they guess is solved to the same answers."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from equilm.decode.attractors import discover, doubts, steady
from equilm.nn.equilibrium import Equilibrium, observed
from equilm.nn.model import LanguageModel
from equilm.solve import Solution, Status
from equilm.tasks import Batch, WordProblem
from tests.decode.automaton import tracker
from tests.measure.models import small

LENGTH = 80


def batch_of(task: WordProblem) -> Batch:
    return task.batch(split="test", length=LENGTH, batch_size=3, seed=0, index=0)


def solved(
    model: LanguageModel, tokens_BT: Tensor, guess_BTD: Tensor | None, *, window: int = 1
) -> tuple[Tensor, Solution]:
    core = model.core
    assert isinstance(core, Equilibrium)
    core.solve = replace(steady(core.solve), window=window)
    with torch.no_grad(), observed(model) as found:
        y_BTD, _ = core(model.embed(tokens_BT), guess_BTD=guess_BTD)
    return y_BTD, found[0]


@pytest.mark.parametrize("group", ["S3", "M4"])
def test_the_table_is_that_of_the_monoid(group: str) -> None:
    model, task = tracker(group)
    found = discover(model)
    table_QQ = task.monoid.table_QQ
    # The element that each state stands for is what led into it.
    element_Q = torch.full((len(found.next_QV),), task.monoid.identity)
    answer_QV = model.logits(found.z_QVD).argmax(-1)
    element_Q[found.next_QV] = answer_QV
    assert len(found.next_QV) == task.vocab_size + 1
    assert torch.equal(element_Q[found.next_QV], answer_QV)
    assert torch.equal(answer_QV, table_QQ[element_Q])
    assert doubts(model, found) == 0
    wrong_QV = found.next_QV.clone()
    wrong_QV[1, 0] = wrong_QV[1, 0] % task.vocab_size + 1
    doubted = doubts(model, replace(found, next_QV=wrong_QV))
    assert doubted == pytest.approx(1 / task.vocab_size**2)
    # Two levels: the empty state, and all elements side by side.
    assert found.sweeps <= 2 * 13
    assert found.evaluations <= len(found.next_QV) * task.vocab_size * 13


@pytest.mark.parametrize("group", ["S3", "M4"])
def test_a_guess_settles_in_a_few_sweeps_to_the_answers_of_one_by_one(group: str) -> None:
    model, task = tracker(group)
    tokens_BT, targets_BT = batch_of(task)
    one_by_one_BTD, slow = solved(model, tokens_BT, None)
    guess_BTD = discover(model).guess(tokens_BT)
    y_BTD, quick = solved(model, tokens_BT, guess_BTD)
    assert (quick.status == Status.CONVERGED).all() and (quick.residual <= 1e-4).all()
    assert torch.equal(model.logits(y_BTD).argmax(-1), targets_BT)
    assert (y_BTD - one_by_one_BTD).abs().max() < 5e-4
    assert slow.sweeps >= LENGTH and quick.sweeps <= 16
    # A guess it is: the answers of the table alone are further off than the tolerance.
    assert (guess_BTD - one_by_one_BTD).abs().max() > 3e-3


def test_wrong_maps_cost_sweeps_and_no_answers() -> None:
    model, task = tracker("S3")
    tokens_BT, targets_BT = batch_of(task)
    found = discover(model)
    wrong_QV = found.next_QV.clone()
    wrong_QV[1] = wrong_QV[2]
    wrong = replace(found, next_QV=wrong_QV)
    guess_BTD = wrong.guess(tokens_BT)
    assert (model.logits(guess_BTD).argmax(-1) != targets_BT).float().mean() > 0.3
    core = model.core
    assert isinstance(core, Equilibrium)
    core.solve = replace(core.solve, max_steps=16)
    y_BTD, slow = solved(model, tokens_BT, guess_BTD)
    assert torch.equal(model.logits(y_BTD).argmax(-1), targets_BT)
    assert slow.sweeps > LENGTH
    # Without windows to go on in, what is not solved says so.
    _, capped = solved(model, tokens_BT, guess_BTD, window=LENGTH)
    assert (capped.status == Status.CAPPED).any()


def test_without_an_end_there_is_no_table() -> None:
    model, _ = tracker("S3")
    with pytest.raises(ValueError, match="between 5 states at most, got more"):
        discover(model, max_states=5)
    with pytest.raises(ValueError, match="model: expected an implicit one"):
        discover(small(implicit=False))
