"""Gradients of the equilibrium of a stack, through the whole model and through its states."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from equilm import tree
from equilm.nn.equilibrium import observed
from equilm.nn.model import MIXERS, LanguageModel
from equilm.solve import (
    Implicit,
    Phantom,
    Solve,
    Status,
)
from tests.nn.build import TIGHT, VOCAB, core_of, tight_model, tokens_of
from tests.tolerance import assert_close, error


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("window", [1, 3, None])
def test_the_implicit_gradient_is_the_same_in_every_window(kind: str, window: int | None) -> None:
    tokens_BT, gradients = tokens_of(2, 5), []
    for size in (None, window):
        model = tight_model(kind, window=size)
        logits_BTV, _ = model(tokens_BT)
        logits_BTV[..., 0].sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for got, want in zip(gradients[1], gradients[0], strict=True):
        assert got is not None
        assert want is not None
        assert_close("gradient", got, want)


@pytest.mark.parametrize("kind", MIXERS)
def test_the_gradient_of_the_whole_model_is_finite_differences(kind: str) -> None:
    model, tokens_BT = tight_model(kind, num_layers=1), tokens_of(1, 3)
    parameters = dict(model.named_parameters())

    def logits(*values: Tensor) -> Tensor:
        replaced = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(model, replaced, (tokens_BT,))[0]

    assert torch.autograd.gradcheck(logits, tuple(parameters.values()), fast_mode=True)


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("window", [None, 1])
def test_the_gradient_through_both_states_is_finite_differences(
    kind: str, window: int | None
) -> None:
    model, tokens_BT = tight_model(kind, window=window, num_layers=1), tokens_of(2, 2)
    with torch.no_grad():
        _, start = model(tokens_of(2, 3, seed=1), model.init_state(2, 5))
    moving = [leaf for leaf in tree.leaves(start) if leaf.is_floating_point()]

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        given = iter(values)
        state = tree.map_(lambda leaf: next(given) if leaf.is_floating_point() else leaf, start)
        logits_BTV, after = model(tokens_BT, state)
        # The last slot of an attention buffer is scratch, and full of what was written last.
        finals = [leaf[:, :5] if leaf.ndim > 3 else leaf for leaf in live_leaves(after)]
        return logits_BTV, *finals

    inputs = tuple(leaf.clone().requires_grad_() for leaf in moving)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def live_leaves(state: Any) -> list[Tensor]:
    return [leaf for leaf in tree.leaves(state) if leaf.is_floating_point()]


def gradients_of(model: LanguageModel, tokens_BT: Tensor) -> list[Tensor]:
    logits_BTV, _ = model(tokens_BT)
    loss = (logits_BTV * torch.arange(VOCAB)).sum()
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("kind", MIXERS)
def test_a_long_phantom_gradient_is_the_implicit_one(kind: str) -> None:
    tokens_BT = tokens_of(2, 3)
    exact = gradients_of(tight_model(kind), tokens_BT)
    long = gradients_of(tight_model(kind, gradient=Phantom(steps=60)), tokens_BT)
    short = gradients_of(tight_model(kind, gradient=Phantom(steps=2)), tokens_BT)
    for got, want in zip(long, exact, strict=True):
        assert_close("gradient", got, want)
    assert max(error(got, want) for got, want in zip(short, exact, strict=True)) > 1e-3


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("gradient", [Implicit(), Phantom()])
def test_frozen_parameters_leave_the_other_gradients_as_they_are(kind: str, gradient: Any) -> None:
    model, tokens_BT = tight_model(kind, gradient=gradient, window=2), tokens_of(2, 4)
    expected = gradients_of(model, tokens_BT)[-1]
    for parameter in list(model.parameters())[:-1]:
        parameter.requires_grad_(False)
    logits_BTV, _ = model(tokens_BT)
    (logits_BTV * torch.arange(VOCAB)).sum().backward()
    last = list(model.parameters())[-1].grad
    assert last is not None
    assert_close("gradient", last, expected)


def test_queries_may_be_trained_alone() -> None:
    # Then the keys carry no graph, but autograd has saved their buffer all the same.
    model, tokens_BT = tight_model("attention", gradient=Phantom(steps=1)), tokens_of(2, 4)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("wq" in name)
    gradients = []
    for window in (None, 2):
        core_of(model).solve = replace(TIGHT, window=window)
        logits_BTV, _ = model(tokens_BT)
        (gradient,) = torch.autograd.grad(
            logits_BTV[..., 0].sum(), [model.get_parameter("core.body.layers.0.mixer.wq.weight_v")]
        )
        gradients.append(gradient)
    assert_close("gradient", gradients[1], gradients[0])


@pytest.mark.parametrize("kind", MIXERS)
def test_no_steps_and_a_phantom_gradient_are_the_unrolled_network(kind: str) -> None:
    model, tokens_BT = tight_model(kind, gradient=Phantom(steps=3, damping=0.8)), tokens_of(2, 4)
    core = core_of(model)
    core.solve = Solve(max_steps=0)
    with observed(model) as found:
        got = gradients_of(model, tokens_BT)
    assert (found[0].status == Status.CAPPED).all()
    assert (found[0].steps == 0).all()
    u_BTE = core.inject(model.embed(tokens_BT))
    z_BTD = torch.zeros(2, 4, core.width, dtype=torch.float64)
    for _ in range(3):
        z_BTD = 0.2 * z_BTD + 0.8 * core.body(z_BTD, None, u_BTE)[0]
    loss = (model.logits(z_BTD) * torch.arange(VOCAB)).sum()
    for one, other in zip(got, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        assert_close("gradient", one, other)
