"""Several projections as one product."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from equilm.nn.joined import Joined
from equilm.nn.linear import Linear, lowered, prepared
from equilm.nn.mlp import GatedMLP
from equilm.ops.fp8 import Scaled, norm_scale, to_e4m3
from tests.tolerance import assert_close

INPUTS = 6


class Pair(nn.Module):
    """The owner of two parts and of their product."""

    def __init__(self, *, weight_norm: bool = True) -> None:
        super().__init__()
        self.one = Linear(INPUTS, 3, weight_norm=weight_norm)
        self.other = Linear(INPUTS, 5, weight_norm=weight_norm)
        self.both = Joined(self.one, self.other)
        self.double()
        for parameter in self.parameters():
            nn.init.normal_(parameter)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("tokens", [1, 20])
def test_it_is_the_parts_side_by_side(tokens: int, held: bool) -> None:
    pair, x_BTD = Pair(), torch.randn(1, tokens, INPUTS, dtype=torch.float64)
    expected_BTD = torch.cat([pair.one(x_BTD), pair.other(x_BTD)], dim=-1)
    weights_BTD = torch.randn_like(expected_BTD)
    expected = torch.autograd.grad((expected_BTD * weights_BTD).sum(), list(pair.parameters()))
    with prepared(pair if held else nn.Module()):
        got_BTD = pair.both(x_BTD)
    assert_close("elementwise", got_BTD, expected_BTD)
    got = torch.autograd.grad((got_BTD * weights_BTD).sum(), list(pair.parameters()))
    for one, other in zip(got, expected, strict=True):
        assert_close("gradient", one, other)


def test_the_parameters_are_the_parts_alone() -> None:
    names = ["one.weight", "other.weight"]
    assert [name for name, _ in Pair(weight_norm=False).named_parameters()] == names
    assert list(Pair(weight_norm=False).state_dict()) == names


def test_a_copy_joins_its_own_parts() -> None:
    pair, x_BTD = Pair(), torch.randn(1, 1, INPUTS, dtype=torch.float64)
    copy = deepcopy(pair)
    with torch.no_grad():
        pair.one.weight_g.zero_()
    assert pair.both(x_BTD)[..., :3].abs().max() == 0
    assert copy.both(x_BTD)[..., :3].abs().max() > 0


def test_what_was_joined_is_forgotten_behind_the_block() -> None:
    pair = Pair()
    with prepared(pair):
        first = pair.both.effective()
        assert pair.both.effective() is first
    assert not pair.both.is_prepared()
    with torch.no_grad():
        pair.one.weight_g.zero_()
    assert not torch.equal(pair.both.effective(), first)


def test_a_weight_joined_without_a_graph_is_joined_again_for_gradients() -> None:
    pair, x_BTD = Pair(), torch.ones(1, 1, INPUTS, dtype=torch.float64)
    with torch.no_grad(), prepared(pair), torch.enable_grad(), prepared(pair):
        pair.both(x_BTD).sum().backward()
    assert pair.one.weight_v.grad is not None


@torch.no_grad()
def test_products_in_8_bits() -> None:
    one, other = Linear(16, 3), Linear(16, 30)
    for part in (one, other):
        nn.init.normal_(part.weight)
    both = Joined(one, other, after_norm=True)
    x_BTD = torch.nn.functional.rms_norm(torch.randn(2, 50, 16), (16,))
    scale = norm_scale(torch.ones(16))
    with prepared(both), lowered(both):
        got_BTD = both(Scaled(to_e4m3(x_BTD, scale), scale))
    expected_BTD = both(x_BTD)
    assert got_BTD.shape == expected_BTD.shape
    assert 1e-3 < ((got_BTD - expected_BTD).norm() / expected_BTD.norm()).item() < 5e-2
    with pytest.raises(AssertionError):
        both(Scaled(to_e4m3(x_BTD, scale), scale))


@pytest.mark.gpu
def test_padding_changes_nothing() -> None:
    mlp, a_BTD = GatedMLP(16, 21), torch.randn(2, 40, 16)
    for parameter in mlp.parameters():
        nn.init.normal_(parameter)
    expected_BTD = mlp(a_BTD)
    mlp = mlp.cuda()
    assert mlp.up.effective().shape == (64, 16)
    assert mlp.down.effective().shape == (16, 32)
    got_BTD: Tensor = mlp(a_BTD.cuda())
    assert ((got_BTD.cpu() - expected_BTD).norm() / expected_BTD.norm()).item() < 1e-3
