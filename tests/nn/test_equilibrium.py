"""Windows, batches and gradients of the equilibrium of a stack."""

from typing import Any

import pytest
import torch
from torch import Tensor

from equilm import tree
from equilm.nn.equilibrium import Equilibrium, observed
from equilm.nn.linear import prepared
from equilm.nn.model import MIXERS, LanguageModel
from equilm.solve import (
    Anderson,
    Implicit,
    Picard,
    Solve,
    Status,
    spectral_radius,
)
from tests.nn.build import equilibrium_model
from tests.tolerance import assert_close

VOCAB = 11
TIGHT = Solve(solver=Anderson(), tolerance=1e-11, max_steps=200, cycle=None)


def tokens_of(rows: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (rows, length), generator=generator)


def float32_model(kind: str, *, seed: int = 0, window: int | None = None) -> LanguageModel:
    solve = Solve(solver=Picard(damping=1.0), tolerance=1e-6, max_steps=500, window=window)
    return equilibrium_model(kind, seed=seed, num_layers=1, solve=solve).float()


def core_of(model: LanguageModel) -> Equilibrium:
    assert isinstance(model.core, Equilibrium)
    return model.core


def tight_model(kind: str, *, gradient: Any = None, window: int | None = None) -> LanguageModel:
    solve = Solve(solver=Anderson(), tolerance=1e-11, max_steps=200, cycle=None, window=window)
    gradient = gradient or Implicit(solve=TIGHT)
    return equilibrium_model(kind, solve=solve, gradient=gradient)


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
@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_all_windows_agree(kind: str, seed: int) -> None:
    tokens_BT, length = tokens_of(2, 70, seed), 70
    model = float32_model(kind, seed=seed)
    with torch.enable_grad():
        assert radius(model, tokens_BT[:, :8]) < 0.7
    expected_BTV, last = model(tokens_BT)
    for window in (1, 2, 7, 64, length):
        core_of(model).solve = float32_model(kind, window=window).core.solve  # type: ignore[assignment]
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
