"""Weight norm, what is made once a forward, and dropout masks."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from equilm.nn.linear import DepthwiseTaps, Linear, VariationalDropout, Weight, prepared
from equilm.nn.model import MIXERS
from equilm.solve import Implicit, Phantom, Solve
from tests.nn.build import WIDTH, equilibrium_model
from tests.tolerance import assert_close

BUILDERS: dict[str, Callable[[], Weight]] = {
    "linear": lambda: Linear(3, 5, weight_norm=True),
    "taps": lambda: DepthwiseTaps(5, 4, weight_norm=True),
}


def fill(part: nn.Module) -> None:
    for parameter in part.parameters():
        nn.init.normal_(parameter)


@pytest.mark.parametrize("kind", BUILDERS)
def test_weight_norm_is_its_formula(kind: str) -> None:
    weight = BUILDERS[kind]()
    fill(weight)
    got = weight.effective()
    for row in range(5):
        v = weight.weight_v[row]
        expected = weight.weight_g[row] * v / v.square().sum().sqrt()
        torch.testing.assert_close(got[row], expected)


@pytest.mark.parametrize("kind", BUILDERS)
def test_an_assigned_weight_is_the_effective_one(kind: str) -> None:
    weight = BUILDERS[kind]()
    fill(weight)
    value = torch.randn_like(weight.weight_v)
    weight.assign(value)
    torch.testing.assert_close(weight.effective(), value)


def test_linear_is_its_formula() -> None:
    linear = Linear(3, 5, bias=True)
    fill(linear)
    assert linear.bias is not None
    x = torch.randn(2, 4, 3)
    torch.testing.assert_close(linear(x), x @ linear.weight.T + linear.bias)


@pytest.mark.parametrize("gradient", [Phantom(), Implicit()])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("recording", [True, False])
@pytest.mark.parametrize("kind", MIXERS)
def test_weights_are_folded_once_a_forward(
    kind: str, recording: bool, window: int | None, gradient: Any
) -> None:
    solve = Solve(tolerance=1e-3, window=window)
    model = equilibrium_model(kind, solve=solve, gradient=gradient)
    weights = [part for part in model.modules() if isinstance(part, Weight)]
    tokens_BT = torch.zeros(2, 5, dtype=torch.int64)
    with torch.set_grad_enabled(recording):
        for forward in (1, 2):
            with patch.object(Weight, "fold", autospec=True, side_effect=Weight.fold) as fold:
                model(tokens_BT)
            assert fold.call_count == len(weights), f"forward {forward}"
    assert not any(part.is_prepared() for part in weights)


def gradients(linear: Linear, x: Tensor, *, held: bool) -> list[Tensor]:
    def run() -> list[Tensor]:
        y = torch.tanh(linear(torch.tanh(linear(x)))).sum()
        return list(torch.autograd.grad(y, list(linear.parameters())))

    if not held:
        return run()
    with prepared(linear):
        return run()


def test_folding_once_changes_no_gradient() -> None:
    linear = Linear(4, 4, weight_norm=True).double()
    fill(linear)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    for got, want in zip(
        gradients(linear, x, held=True), gradients(linear, x, held=False), strict=True
    ):
        assert_close("gradient", got, want)


def test_what_was_folded_is_forgotten_behind_the_block() -> None:
    linear = Linear(3, 5, weight_norm=True)
    fill(linear)
    with pytest.raises(ZeroDivisionError), prepared(linear):
        raise ZeroDivisionError
    assert not linear.is_prepared()
    before = linear.effective()
    fill(linear)
    assert not torch.equal(linear.effective(), before)


def test_blocks_nest() -> None:
    linear = Linear(3, 5, weight_norm=True)
    fill(linear)
    with prepared(linear):
        outer = linear.effective()
        with prepared(linear):
            assert linear.effective() is outer
        assert linear.effective() is outer


def test_a_weight_folded_without_a_graph_is_folded_again_for_gradients() -> None:
    linear = Linear(3, 5, weight_norm=True)
    fill(linear)
    with torch.no_grad(), prepared(linear):
        linear(torch.ones(1, 1, 3))
        with torch.enable_grad(), prepared(linear):
            linear(torch.ones(1, 1, 3)).sum().backward()
    assert linear.weight_v.grad is not None


def test_autocast_casts_once() -> None:
    linear = Linear(3, 5, weight_norm=True)
    fill(linear)
    with torch.autocast("cpu", dtype=torch.bfloat16), prepared(linear):
        assert linear.effective().dtype == torch.bfloat16
    assert linear.effective().dtype == torch.float32


class TestDropout:
    rate = 0.4

    def dropout(self) -> VariationalDropout:
        return VariationalDropout(self.rate)

    def test_one_mask_for_all_tokens_and_evaluations_another_for_each_row(self) -> None:
        dropout, ones_BTD = self.dropout(), torch.ones(64, 5, 50)
        with prepared(dropout):
            mask_BTD = dropout(ones_BTD)
            assert torch.equal(dropout(ones_BTD), mask_BTD)
            assert torch.equal(dropout(ones_BTD[:, :2]), mask_BTD[:, :2])
        assert (mask_BTD == mask_BTD[:, :1]).all()
        assert not (mask_BTD[0] == mask_BTD[1]).all()
        values = mask_BTD.unique()
        torch.testing.assert_close(values, torch.tensor([0.0, 1 / (1 - self.rate)]))
        dropped = float((mask_BTD[:, 0] == 0).double().mean())
        assert abs(dropped - self.rate) < 0.03

    def test_every_forward_has_its_own_mask(self) -> None:
        dropout, ones_BTD = self.dropout(), torch.ones(2, 3, 50)
        with prepared(dropout):
            first_BTD = dropout(ones_BTD)
        with prepared(dropout):
            assert not torch.equal(dropout(ones_BTD), first_BTD)
        assert not torch.equal(dropout(ones_BTD), dropout(ones_BTD))

    def test_evaluation_is_the_identity(self) -> None:
        y_BTD = torch.randn(2, 3, 5)
        assert self.dropout().eval()(y_BTD) is y_BTD
        assert VariationalDropout(0.0)(y_BTD) is y_BTD

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_the_type_stays(self, dtype: torch.dtype) -> None:
        assert self.dropout()(torch.ones(2, 3, 5, dtype=dtype)).dtype == dtype

    @pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
    def test_a_rate_out_of_range_is_an_error(self, rate: float) -> None:
        with pytest.raises(ValueError, match=r"dropout: expected a number in \[0, 1\), got"):
            VariationalDropout(rate)

    @pytest.mark.parametrize("kind", MIXERS)
    @pytest.mark.parametrize("window", [None, 2])
    def test_an_equilibrium_with_dropout_is_a_fixed_point(
        self, kind: str, window: int | None
    ) -> None:
        solve = Solve(tolerance=1e-6, max_steps=200, window=window)
        gradient = Phantom(steps=40)
        model = equilibrium_model(kind, num_layers=1, solve=solve, dropout=0.3, gradient=gradient)
        core, x_BTD = model.core, torch.randn(3, 4, WIDTH, dtype=torch.float64)
        # Without a mask that is held, forty steps would not repeat themselves.
        with prepared(core):
            y_BTD, _ = core(x_BTD)
            again_BTD, _ = core(x_BTD)
        assert_close("equilibrium", again_BTD, y_BTD)
        other_BTD, _ = core(x_BTD)
        assert (other_BTD - y_BTD).abs().max() > 1e-2
