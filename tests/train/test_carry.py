"""Rows that go on from step to step in their own state, and rows that begin anew."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from equilm import tree
from equilm.config import ConfigError, decode
from equilm.nn.attention import AttentionConfig
from equilm.nn.hybrid import HybridConfig, Layer
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import LanguageModel
from equilm.tasks import IGNORE, Batch, InductionConfig, WordProblem, WordProblemConfig, build_task
from equilm.tasks.word_problem import prefix_products
from equilm.train import carry
from equilm.train.gradient import accumulate
from equilm.train.parallel import Ranks
from equilm.train.recipe import Recipe
from equilm.train.schedule import FixedLengths, Phase
from equilm.train.trainer import Trainer
from tests.train.tiny import EXPLICIT, TINY, curve, finish, left_behind

# Fresh rows of three tokens at first, then rows of four tokens a step that may come to eleven.
RECIPE = replace(
    TINY,
    device="cpu",
    curriculum=FixedLengths(lengths=(3, 4), shares=(0.0, 0.2)),
    phases=(
        Phase(max_steps=4, phantom_steps=2),
        Phase(share=0.2, max_steps=4, phantom_steps=2, window=2, carry=11, carry_mix=0.3),
    ),
)


def model_of(recipe: Recipe) -> LanguageModel:
    task = build_task(recipe.task)
    return LanguageModel(recipe.model_for(task), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        replace(
            RECIPE,
            model=replace(EXPLICIT, mixer=AttentionConfig(heads=2)),
            phases=(RECIPE.phases[0], replace(RECIPE.phases[1], carry_mix=0.0)),
        ),
        replace(RECIPE, model=EXPLICIT, state_noise=0.3),
    ],
)
def test_a_run_that_stopped_goes_on_bit_for_bit(recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(recipe, checkpoint_every=1)
    finish(recipe, tmp_path / "unbroken")
    for report in Trainer(recipe, tmp_path / "run").run():
        if report.step == 4:
            break
    finish(recipe, tmp_path / "run", resume=True)
    assert curve(tmp_path / "run") == curve(tmp_path / "unbroken")
    assert "carried.safetensors" in left_behind(tmp_path / "run")
    assert left_behind(tmp_path / "run") == left_behind(tmp_path / "unbroken")


def test_rows_grow_to_the_limit_or_begin_anew_after_a_wrong_answer(tmp_path: Path) -> None:
    trainer = Trainer(replace(RECIPE, batch_size=64, steps=12), tmp_path / "run")
    lengths = []
    for report in trainer.run():
        carried = trainer.position.carried
        assert (carried is None) == (report.step <= 3)
        if carried is not None:
            lengths += carried.length_B.tolist()
    # Two steps of four tokens fit into eleven, three do not.
    assert set(lengths) == {0, 4, 8}


def test_a_row_begins_with_all_it_knew_or_with_nothing() -> None:
    model = model_of(RECIPE)
    fresh = model.init_state(4, 1)
    before = carry.Carried(
        tree.map_(torch.ones_like, fresh), torch.tensor([5, 4, 3, 2]), torch.tensor([4, 0, 8, 7])
    )
    begin = carry.begun(model, before, rows=4, length=4, limit=11)
    assert begin.length_B.tolist() == [4, 0, 0, 7] and begin.known_B.tolist() == [5, 0, 0, 2]
    for leaf, new in zip(tree.leaves(begin.state), tree.leaves(fresh), strict=True):
        assert (leaf[[0, 3]] == 1).all() and leaf[[1, 2]].equal(new[[1, 2]])
    # A batch of another size leaves nobody to go on.
    again = carry.begun(model, before, rows=3, length=4, limit=11)
    assert again.length_B.tolist() == [0, 0, 0] == again.known_B.tolist()


def test_a_row_whose_state_is_not_finite_begins_anew() -> None:
    model = model_of(RECIPE)
    begin = carry.begun(model, None, rows=3, length=4, limit=11)
    state = tree.map_(torch.clone, begin.state)
    next(tree.leaves(state))[1, 0] = torch.nan
    right_B, known_B = torch.tensor([True, True, False]), torch.tensor([5, 6, 7])
    found = carry.ended(begin, state=state, known_B=known_B, right_B=right_B, length=4)
    assert found.length_B.tolist() == [4, 0, 0]
    again = carry.begun(model, found, rows=3, length=4, limit=11)
    assert all(leaf.isfinite().all() for leaf in tree.leaves(again.state))


def test_rows_begin_anew_where_the_room_of_their_states_changes() -> None:
    attends = replace(EXPLICIT, mixer=AttentionConfig(heads=2))
    model = model_of(replace(RECIPE, model=attends, phases=()))
    before = carry.begun(model, None, rows=2, length=4, limit=8)
    before = before._replace(length_B=torch.tensor([4, 4]))
    lengths = [
        carry.begun(model, before, rows=2, length=length, limit=limit).length_B.tolist()
        for length, limit in ((4, 8), (4, 16), (12, 8))
    ]
    assert lengths == [[4, 4], [0, 0], [0, 0]]


def test_answers_go_on_from_the_product_so_far() -> None:
    task = WordProblem(WordProblemConfig(group="A5"))
    whole = task.batch(split="train", length=9, batch_size=5, seed=0, index=0)
    table_QQ = task.monoid.table_QQ
    known_B, targets = torch.zeros(5, dtype=torch.int64), []
    for tokens_BT in whole.tokens_BT.split((4, 3, 2), dim=1):
        piece = Batch(tokens_BT, prefix_products(tokens_BT, table_QQ))
        piece, known_B = task.follow(piece, known_B)
        targets.append(piece.targets_BT)
    assert torch.cat(targets, 1).equal(whole.targets_BT)


@pytest.mark.parametrize("rows_at_once", [None, 3])
def test_a_state_given_is_where_rows_begin_and_no_gradient_goes_there(
    rows_at_once: int | None,
) -> None:
    recipe = replace(RECIPE, rows_at_once=rows_at_once, model=EXPLICIT)
    model, task = model_of(recipe), build_task(recipe.task)
    batch = task.batch(split="train", length=8, batch_size=8, seed=0, index=0)
    ranks = Ranks(device=torch.device("cpu"))
    first, second = (Batch(*(part[:, cut] for part in batch)) for cut in _halves(4))
    begin = model.init_state(8, 8)
    after = accumulate(model, first, recipe, ranks, begin=begin).state
    assert not any(leaf.requires_grad for leaf in tree.leaves(after))
    found = accumulate(model, second, recipe, ranks, begin=after)
    with torch.no_grad():
        logits_BTV, state = model(batch.tokens_BT)
        expected = torch.nn.functional.cross_entropy(
            logits_BTV[:, 4:].flatten(0, 1), second.targets_BT.flatten(), ignore_index=IGNORE
        )
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.right_B.equal(logits_BTV[:, -1].argmax(-1) == batch.targets_BT[:, -1])
    for leaf, whole in zip(tree.leaves(found.state), tree.leaves(state), strict=True):
        torch.testing.assert_close(leaf, whole)


def _halves(cut: int) -> tuple[slice, slice]:
    return slice(0, cut), slice(cut, None)


def test_what_cannot_carry_is_told(tmp_path: Path) -> None:
    recipe = replace(RECIPE, task=InductionConfig())
    with pytest.raises(ConfigError, match="whose rows stand alone"):
        Trainer(recipe, tmp_path / "run")
    with pytest.raises(ConfigError, match="carry: expected an integer >= 1, got 0"):
        decode(Recipe, {"phases": [{"carry": 0}]})
    with pytest.raises(ConfigError, match=r"carry_mix: expected a share in \[0, 0.5\), got 0.5"):
        decode(Recipe, {"phases": [{"carry": 11, "carry_mix": 0.5}]})
    with pytest.raises(ConfigError, match=r"carry_mix: expected 0 without carry, got 0.3"):
        decode(Recipe, {"phases": [{"carry_mix": 0.3}]})
    attention = AttentionConfig(heads=2)
    pattern = HybridConfig(
        layers=(Layer(mixer=Mamba2Config(head_width=8, state_size=4)), Layer(mixer=attention))
    )
    for mixer in (attention, pattern):
        with pytest.raises(ValueError, match=r"^phases.1.carry_mix: expected 0 for attention"):
            replace(RECIPE, model=replace(EXPLICIT, mixer=mixer))


@pytest.mark.parametrize("lost", [1000.0, torch.nan])
def test_rows_that_go_on_hold_some_of_another_and_most_of_their_own(lost: float) -> None:
    model = model_of(RECIPE)
    own_B = torch.tensor([1.0, 2.0, 3.0, 4.0, lost, 6.0])
    like = model.init_state(6, 1)
    state = tree.map_(lambda part: own_B.view(-1, *[1] * (part.ndim - 1)).expand_as(part), like)
    length_B = torch.tensor([4, 4, 4, 4, 0, 4])
    before = carry.Carried(state, torch.zeros(6, dtype=torch.int64), length_B)
    begin = carry.begun(model, before, rows=6, length=4, limit=11, mix=0.4)
    shares = []
    for leaf in tree.leaves(begin.state):
        held_B = leaf.flatten(1)
        assert held_B.equal(held_B[:, :1].expand_as(held_B)) and not held_B[4].any()
        shares.append((held_B[:, 0] - own_B)[length_B > 0])
    assert all(share.equal(shares[0]) for share in shares)
    # None is of the fifth, which begins anew.
    assert shares[0].any() and shares[0].abs().max() <= 0.4 * 5
