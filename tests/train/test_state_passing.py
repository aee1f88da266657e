"""Windows of a sequence pass their state on and no gradient; first states may be random."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from equilm.config import ConfigError, decode
from equilm.nn.attention import AttentionConfig
from equilm.nn.model import LanguageModel
from equilm.tasks import build_task
from equilm.train.metrics import StepReport
from equilm.train.recipe import Recipe
from equilm.train.schedule import FixedLengths
from equilm.train.trainer import Trainer
from equilm.tree import map_
from tests.train.ranks import RECIPE, train
from tests.train.test_parallel import losses
from tests.train.tiny import EXPLICIT, curve, finish, left_behind

MODELS = {
    "mamba2": EXPLICIT,
    "attention": replace(EXPLICIT, mixer=AttentionConfig(heads=2)),
}
LONG = replace(
    RECIPE,
    model=EXPLICIT,
    curriculum=FixedLengths(lengths=(7,)),
    phases=RECIPE.phases[1:2],
    gradient_length=3,
)


def first_step(recipe: Recipe, folder: Path) -> StepReport:
    return next(Trainer(recipe, folder).run())


@pytest.mark.parametrize("name", MODELS)
def test_windows_have_the_whole_loss_and_gradients_that_end_at_their_first_token(
    name: str, tmp_path: Path
) -> None:
    recipe = replace(LONG, model=MODELS[name])
    model = LanguageModel(
        replace(MODELS[name], vocab_size=6), generator=torch.Generator().manual_seed(recipe.seed)
    )
    batch = build_task(recipe.task).batch(
        split="train", length=7, batch_size=8, seed=recipe.seed, index=0
    )
    state = model.init_state(8, 7)
    total = 0.0
    for start in (0, 3, 6):
        tokens_BT, targets_BT = (part[:, start : start + 3] for part in batch)
        logits_BTV, state = model(tokens_BT, state)
        state = map_(torch.Tensor.detach, state)
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="sum") / 56
        loss.backward()
        total += loss.item()
    squares = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
    report = first_step(recipe, tmp_path / "windows")
    whole = first_step(replace(recipe, gradient_length=None), tmp_path / "whole")
    assert report.loss == pytest.approx(total, rel=1e-5)
    assert report.loss == pytest.approx(whole.loss, rel=1e-5)
    assert report.grad_norm == pytest.approx(math.sqrt(sum(squares)), rel=1e-4)
    assert report.grad_norm != pytest.approx(whole.grad_norm, rel=1e-3)


def test_an_implicit_model_solves_every_window_from_the_state_before_it(tmp_path: Path) -> None:
    recipe = replace(LONG, model=RECIPE.model)
    report = first_step(recipe, tmp_path / "windows")
    # The same cut by the solver lets gradients through, and has the same values.
    phases = tuple(replace(phase, window=3) for phase in recipe.phases)
    solver = first_step(replace(recipe, gradient_length=None, phases=phases), tmp_path / "solver")
    assert report.loss == pytest.approx(solver.loss, rel=1e-4)
    assert report.grad_norm != pytest.approx(solver.grad_norm, rel=1e-3)


def test_random_first_states_change_the_loss_and_follow_from_the_step(tmp_path: Path) -> None:
    recipe = replace(LONG, state_noise=0.5)
    reports = finish(recipe, tmp_path / "unbroken")
    still = finish(replace(recipe, state_noise=0.0), tmp_path / "still")
    assert all(a.loss != b.loss for a, b in zip(reports, still, strict=True))
    for report in Trainer(recipe, tmp_path / "run").run():
        if report.step == 5:
            break
    finish(recipe, tmp_path / "run", resume=True)
    assert curve(tmp_path / "run") == curve(tmp_path / "unbroken")
    assert left_behind(tmp_path / "run") == left_behind(tmp_path / "unbroken")


@pytest.mark.multi
@pytest.mark.parametrize("name", MODELS)
def test_windows_on_two_processes_are_those_of_one(name: str, tmp_path: Path) -> None:
    recipe = replace(LONG, model=MODELS[name], steps=4, rows_at_once=3)
    finish(recipe, tmp_path / "alone")
    train(2, recipe, tmp_path / "pair")
    assert losses(tmp_path / "pair") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"gradient_length": 0}, "gradient_length: expected an integer >= 1, got 0"),
        ({"rows_at_once": 0}, "rows_at_once: expected an integer >= 1, got 0"),
        ({"label_smoothing": 1.0}, r"label_smoothing: expected a share in \[0, 1\), got 1.0"),
        ({"state_noise": -1.0}, "state_noise: expected a number >= 0, got -1.0"),
        (
            {"state_noise": 0.1, "model": "llama-130m"},
            "state_noise: expected 0 for attention, which begins with nothing, got 0.1",
        ),
    ],
)
def test_a_setting_out_of_range_is_named(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        decode(Recipe, settings)
