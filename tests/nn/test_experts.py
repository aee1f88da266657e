"""A mixture of experts against its definition; its balance loss, wherever a gradient comes from."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.nn.experts import Experts, ExpertsConfig
from equilm.nn.hybrid import HybridConfig
from equilm.nn.model import LanguageModel
from equilm.ops.experts import by_all, by_choice, experts
from equilm.solve import Implicit, Phantom, Solve
from tests.nn.build import TIGHT, WIDTH, tokens_of
from tests.nn.patterns import PATTERNS, hybrid_model, implicit_hybrid
from tests.tolerance import assert_close

IGNORE = -100


def mixture(*, chosen: int) -> Experts:
    module = Experts(ExpertsConfig(hidden=5, experts=4, chosen=chosen), WIDTH).double()
    for leaf in module.parameters():
        torch.nn.init.normal_(leaf)
    return module


def test_it_is_its_definition() -> None:
    module = mixture(chosen=2)
    a_BTD = torch.randn(2, 7, WIDTH, dtype=torch.float64)
    y_BTD, (chosen_BY, share_BY) = module(a_BTD)
    w1_YUD, w3_YUD = (part.weight.view(4, 5, WIDTH) for part in (module.w1, module.w3))
    w2_YDU = module.w2.weight.view(4, WIDTH, 5)
    counts = torch.zeros(2, 4, dtype=torch.float64)
    for row in range(2):
        for t in range(7):
            a_D = a_BTD[row, t]
            share_Y = torch.softmax(module.router.weight @ a_D, dim=0)
            want_D = torch.zeros(WIDTH, dtype=torch.float64)
            for e in share_Y.argsort(descending=True)[:2].tolist():
                hidden_U = F.silu(w1_YUD[e] @ a_D) * (w3_YUD[e] @ a_D)
                want_D = want_D + share_Y[e] * (w2_YDU[e] @ hidden_U)
                counts[row, e] += 1
            assert_close("mixer", y_BTD[row, t], want_D)
    assert torch.equal(chosen_BY, counts)
    assert_close("mixer", share_BY, torch.softmax(module.router(a_BTD), -1).sum(1))


def test_both_views_agree_in_all_gradients() -> None:
    shapes = [(9, WIDTH), (9, 4), (4, 5, WIDTH), (4, 5, WIDTH), (4, WIDTH, 5)]
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    # Expert 3 is nobody's.
    chosen_RY = torch.rand(9, 4) > torch.tensor([0.3, 0.5, 0.7, 1.0])

    def outcome(view: object) -> list[Tensor]:
        assert callable(view)
        share_RY = leaves[1].where(chosen_RY, 0)
        y_RD = view(leaves[0], share_RY, *leaves[2:])
        return [y_RD, *torch.autograd.grad((y_RD * torch.arange(WIDTH)).sum(), leaves)]

    for one, other in zip(outcome(by_choice), outcome(by_all), strict=True):
        assert_close("gradient", one, other)
    assert torch.equal(outcome(experts)[0], outcome(by_choice)[0])


def test_a_balanced_router_has_the_least_loss_and_one_that_is_not_more() -> None:
    module = mixture(chosen=1)
    state = module.init_state(3)
    even = state._replace(chosen_BY=state.chosen_BY + 2, share_BY=state.share_BY + 2)
    assert_close("loss", module.balance_loss(None, even), torch.tensor(0.01, dtype=torch.float64))
    one = torch.tensor([8.0, 0, 0, 0], dtype=torch.float64).expand(3, 4)
    lopsided = state._replace(chosen_BY=one, share_BY=one)
    want = torch.tensor(0.04, dtype=torch.float64)
    assert_close("loss", module.balance_loss(None, lopsided), want)
    # What was counted before is no matter.
    later = state._replace(chosen_BY=even.chosen_BY + one, share_BY=even.share_BY + one)
    assert_close("loss", module.balance_loss(even, later), want)


def with_balance(balance: float, implicit: bool, gradient: object = None) -> LanguageModel:
    layers, _ = PATTERNS["jamba"]
    changed = tuple(
        replace(layer, mlp=replace(layer.mlp, balance=balance))
        if isinstance(layer.mlp, ExpertsConfig)
        else layer
        for layer in layers
    )
    mixer = HybridConfig(layers=changed)
    if not implicit:
        return hybrid_model("jamba", mixer=mixer)
    solve = Solve(tolerance=1e-12, max_steps=300, cycle=None)
    return implicit_hybrid("jamba", mixer=mixer, solve=solve, gradient=gradient)


def loss_and_gradients(model: LanguageModel) -> tuple[Tensor, list[Tensor]]:
    tokens_BT = tokens_of(2, 5)
    found = model.loss(tokens_BT, tokens_BT.roll(1, 1), ignore=IGNORE)
    return found.loss_sum, list(torch.autograd.grad(found.loss_sum, list(model.parameters())))


@pytest.mark.parametrize("gradient", [None, Phantom(steps=3), Implicit(solve=TIGHT)])
def test_the_balance_has_a_gradient_and_no_part_in_the_loss(gradient: object) -> None:
    """Its gradient is that of the loss of the state, which the whole model gives back."""
    without, with_ = (with_balance(weight, gradient is not None, gradient) for weight in (0.0, 3.0))
    loss, base = loss_and_gradients(without)
    same, got = loss_and_gradients(with_)
    assert torch.equal(loss, same)
    tokens_BT = tokens_of(2, 5)
    _, state = with_(tokens_BT)
    terms = []
    for place in (0, 2):
        chosen_Y, share_Y = (part.sum(0) for part in state[place][1])
        terms.append(3.0 * 4 * (chosen_Y / chosen_Y.sum() * share_Y / share_Y.sum()).sum())
    extra = torch.autograd.grad(
        tokens_BT.numel() * torch.stack(terms).sum(),
        list(with_.parameters()),
        materialize_grads=True,
    )
    assert max(float(part.abs().max()) for part in extra) > 1e-3
    for one, two, other in zip(got, base, extra, strict=True):
        assert_close("gradient", one, two + other)


@pytest.mark.parametrize("implicit", [True, False])
def test_blocks_computed_again_have_the_same_gradient(implicit: bool) -> None:
    model = with_balance(1.0, implicit, Phantom(steps=3))
    _, kept = loss_and_gradients(model)
    model.recompute = True
    _, again = loss_and_gradients(model)
    for one, other in zip(again, kept, strict=True):
        assert_close("gradient", one, other)


def test_windows_add_up_to_the_whole_in_what_is_counted() -> None:
    model, tokens_BT = with_balance(1.0, False), tokens_of(2, 6)
    _, whole = model.loss_from(tokens_BT, tokens_BT, model.init_state(2, 6), ignore=IGNORE)
    state = model.init_state(2, 6)
    for part_BT in tokens_BT.split(2, dim=1):
        _, state = model.loss_from(part_BT, part_BT, state, ignore=IGNORE)
    assert torch.equal(state[0][1].chosen_BY, whole[0][1].chosen_BY)
    assert int(whole[0][1].chosen_BY.sum()) == 2 * 6 * 2


def test_training_evens_out_a_lopsided_router() -> None:
    model = with_balance(10.0, False)
    experts = next(part for part in model.modules() if isinstance(part, Experts))
    with torch.no_grad():
        experts.router.weight[0] *= 30
    tokens_BT = tokens_of(8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    spread = []
    for _ in range(40):
        found, state = model.loss_from(tokens_BT, tokens_BT, model.init_state(8, 8), ignore=IGNORE)
        spread.append(float(state[0][1].chosen_BY.sum(0).max()) / 128)
        optimizer.zero_grad()
        found.loss_sum.backward()
        optimizer.step()
    assert spread[-1] < 0.75 * spread[0]
