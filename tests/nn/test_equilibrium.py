"""Windows, batches, statuses and types of the equilibrium of a stack."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from equilm import tree
from equilm.nn.block import Block, Stack
from equilm.nn.equilibrium import observed
from equilm.nn.linear import prepared
from equilm.nn.model import MIXERS, LanguageModel
from equilm.solve import (
    Anderson,
    Solve,
    Status,
    spectral_radius,
)
from tests.nn.build import core_of, float32_model, tight_model, tokens_of
from tests.tolerance import assert_close, error


def radius(model: LanguageModel, tokens_BT: Tensor) -> float:
    """The largest spectral radius of F over the rows, at its fixed points."""
    core, x_BTD = core_of(model), model.embed(tokens_BT)
    with torch.no_grad(), observed(model) as found:
        core(x_BTD)
    with prepared(core):
        u_BTE = core.inject(x_BTD)
        radius_B = spectral_radius(
            lambda z_BTD: core.body(z_BTD, None, u_BTE),
            found[0].value,
            generator=torch.Generator().manual_seed(0),
        )
    return float(radius_B.max())


@pytest.mark.parametrize("kind", MIXERS)
@torch.no_grad()
def test_all_windows_agree(kind: str) -> None:
    tokens_BT, length = tokens_of(2, 66), 66
    model = float32_model(kind)
    with torch.enable_grad():
        assert radius(model, tokens_BT[:, :8]) < 0.7
    expected_BTV, last = model(tokens_BT)
    for window in (1, 2, 7, 64, length):
        core_of(model).solve = replace(core_of(model).solve, window=window)
        state = model.init_state(2, length)
        with observed(model) as found:
            got_BTV, after = model(tokens_BT, state)
        assert (found[0].status == Status.CONVERGED).all()
        assert_close("equilibrium", got_BTV, expected_BTV)
        if kind == "mamba2":
            for got, want in zip(tree.leaves(after), tree.leaves(last), strict=True):
                assert_close("equilibrium", got, want)


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("window", [1, 4, None])
@torch.no_grad()
def test_a_row_is_the_same_alone_in_a_batch_and_padded(kind: str, window: int | None) -> None:
    model, tokens_BT = float32_model(kind, window=window), tokens_of(8, 12)
    valid_B = torch.tensor([12, 1, 5, 12, 3, 7, 2, 9])
    padded_BTV, _ = model(tokens_BT, valid_B=valid_B)
    full_BTV, _ = model(tokens_BT)
    for row, valid in enumerate(valid_B.tolist()):
        alone_BTV, _ = model(tokens_BT[row : row + 1, :valid])
        for batch_BTV in (padded_BTV, full_BTV):
            assert_close("row", batch_BTV[row, :valid], alone_BTV[0])


@pytest.mark.parametrize("window", [4, None])
@torch.no_grad()
def test_no_step_is_spent_on_padding(window: int | None) -> None:
    model, valid_B = float32_model("mamba2", window=window), torch.tensor([6, 1, 3])
    with observed(model) as found:
        model(tokens_of(3, 6), valid_B=valid_B)
    padding = torch.arange(6) >= valid_B[:, None]
    assert (found[0].steps[padding] == 0).all()
    assert (found[0].value[padding] == 0).all()
    assert (found[0].steps[~padding] > 0).all()


@pytest.mark.parametrize("window", [1, 3, None])
def test_without_autograd_the_output_is_one_undamped_evaluation(window: int | None) -> None:
    model, tokens_BT = tight_model("mamba2"), tokens_of(2, 6)
    core = core_of(model)
    core.solve = Solve(tolerance=0.1, window=window)
    x_BTD = model.embed(tokens_BT)
    with torch.no_grad(), observed(model) as found:
        y_BTD, _ = core(x_BTD)
        expected_BTD, _ = core.body(found[0].value, None, core.inject(x_BTD))
    assert error(found[0].value, expected_BTD) > 1e-3
    assert_close("mixer", y_BTD, expected_BTD)


def test_what_does_not_converge_is_a_status() -> None:
    model, tokens_BT = tight_model("attention"), tokens_of(2, 6)
    for window in (None, 2):
        core_of(model).solve = Solve(tolerance=1e-9, max_steps=2, window=window)
        with torch.no_grad(), observed(model) as found:
            logits_BTV, _ = model(tokens_BT)
        assert (found[0].status == Status.CAPPED).any()
        assert (found[0].steps > 0).all()
        assert torch.isfinite(logits_BTV).all()


def test_observed_collects_every_solve_and_then_stops() -> None:
    model, tokens_BT = tight_model("mamba2", window=2), tokens_of(2, 5)
    with observed(model, trace=True) as found:
        model(tokens_BT)
        with torch.no_grad():
            model(tokens_BT)
    model(tokens_BT)
    assert [solution.value.shape[1] for solution in found] == [2, 2, 1, 5]
    assert found[0].trace is not None
    assert found[0].trace.shape == (found[0].sweeps, 2, 2)
    with pytest.raises(ZeroDivisionError), observed(model):
        raise ZeroDivisionError
    assert core_of(model)._observers == ()


def test_observers_inside_each_other_each_collect_their_own() -> None:
    model, tokens_BT = tight_model("mamba2", window=2), tokens_of(2, 5)
    with torch.no_grad(), observed(model) as outer:
        model(tokens_BT)
        with observed(model) as inner:
            model(tokens_BT)
        model(tokens_BT)
    assert (len(outer), len(inner)) == (3, 1)
    assert inner[0] is outer[1]


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("recording", [True, False])
def test_half_precision(kind: str, window: int | None, recording: bool) -> None:
    model, tokens_BT = float32_model(kind, window=window), tokens_of(2, 6)
    core_of(model).solve = replace(core_of(model).solve, tolerance=0.02, solver=Anderson())
    with torch.set_grad_enabled(recording):
        expected_BTV, _ = model(tokens_BT)
        with torch.autocast("cpu", dtype=torch.bfloat16), observed(model) as found:
            cast_BTV, state = model(tokens_BT)
            if recording:
                cast_BTV.sum().backward()
        narrow_BTV, _ = model.bfloat16()(tokens_BT)
    assert found[0].value.dtype == torch.float32
    assert (found[0].status == Status.CONVERGED).all()
    if kind == "mamba2":
        assert {leaf.dtype for leaf in tree.leaves(state)} == {torch.float32}
    for got_BTV in (cast_BTV, narrow_BTV):
        assert got_BTV.dtype == torch.float32
        assert error(got_BTV, expected_BTV) < 0.1


@pytest.mark.parametrize("kind", MIXERS)
def test_an_equilibrium_is_a_mixer_of_a_block(kind: str) -> None:
    """One solve a layer, as in fixed-point RNNs."""
    layers = [core_of(tight_model(kind)), core_of(tight_model(kind))]
    width = layers[0].width
    stack = Stack([Block(layer, None, width) for layer in layers], width).double()
    x_BTD = torch.randn(2, 4, width, dtype=torch.float64, requires_grad=True)
    y_BTD, _ = stack(x_BTD)
    first_BTD, state = stack(x_BTD[:, :3], stack.init_state(2, 4))
    second_BTD, _ = stack(x_BTD[:, 3:], state)
    assert_close("equilibrium", torch.cat([first_BTD, second_BTD], dim=1), y_BTD)
    (gradient_BTD,) = torch.autograd.grad(y_BTD[:, 1].sum(), x_BTD)
    assert (gradient_BTD[:, 2:] == 0).all()
    assert (gradient_BTD[:, :2] != 0).all()
