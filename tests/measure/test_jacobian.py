"""Theorem 1 against autograd through the solve and against finite differences."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equilm.measure.jacobian import (
    TIGHT,
    state_jacobian_autograd,
    state_jacobian_explicit,
    state_jacobian_theorem,
)
from equilm.nn.equilibrium import Equilibrium
from equilm.nn.mamba2 import Mamba2, Mamba2Config
from equilm.nn.model import LanguageModel
from equilm.solve import NotConverged
from tests.nn.build import equilibrium_model, language_model
from tests.tolerance import assert_close

TOKENS = torch.tensor([[3, 1, 4, 1, 5]])
MIXER = Mamba2Config(expand=1, head_width=4, state_size=1)
WINDOW, SCAN = 3 * (8 + 2 * 1), 2 * 4 * 1  # numbers of each in one layer


def tiny(**settings: Any) -> LanguageModel:
    """With a scan that remembers, or its part of the Jacobian would be too small to test."""
    model = equilibrium_model("mamba2", **{"mixer": MIXER, "num_layers": 1, **settings})
    for part in model.modules():
        if isinstance(part, Mamba2):
            nn.init.constant_(part.A_log, -2.0)
            nn.init.zeros_(part.dt_bias)
    return model


def finite_differences(model: LanguageModel, tokens_1T: Tensor) -> Tensor:
    """Of the solve itself: nothing here knows about implicit functions."""
    assert isinstance(model.core, Equilibrium)
    model.core.solve = TIGHT
    x_BTD = model.embed(tokens_1T)
    _, ((window, scan),) = model.core(x_BTD[:, :-1])
    h_M = torch.cat([window.flatten(), scan.flatten()])
    step, columns = 1e-5, []

    def after(h_M: Tensor) -> Tensor:
        state = ((h_M[:WINDOW].view_as(window), h_M[WINDOW:].view_as(scan)),)
        assert isinstance(model.core, Equilibrium)
        _, ((next_window, next_scan),) = model.core(x_BTD[:, -1:], state)
        return torch.cat([next_window.flatten(), next_scan.flatten()])

    for unit_M in torch.eye(len(h_M), dtype=h_M.dtype):
        columns.append((after(h_M + step * unit_M) - after(h_M - step * unit_M)) / (2 * step))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("length", [1, 5])
def test_the_theorem_is_autograd_through_the_solve(num_layers: int, length: int) -> None:
    model = tiny(num_layers=num_layers)
    theorem_MM = state_jacobian_theorem(model, TOKENS[:, :length])
    assert theorem_MM.shape == (num_layers * (WINDOW + SCAN),) * 2
    assert_close("jacobian", theorem_MM, state_jacobian_autograd(model, TOKENS[:, :length]))


def test_both_are_finite_differences() -> None:
    model = tiny()
    with torch.no_grad():
        expected_MM = finite_differences(model, TOKENS)
    assert_close("differences", state_jacobian_theorem(model, TOKENS), expected_MM)
    assert_close("differences", state_jacobian_autograd(model, TOKENS), expected_MM)


def off_diagonal(block: Tensor) -> float:
    return float((block - block.diag().diag()).abs().max())


def test_the_scan_of_an_explicit_layer_is_diagonal_that_of_an_implicit_one_is_not() -> None:
    model = tiny()
    explicit_MM = state_jacobian_explicit(model, TOKENS)
    assert off_diagonal(explicit_MM[WINDOW:, WINDOW:]) == 0
    assert (explicit_MM[WINDOW:, WINDOW:].diag() > 0.5).all()
    assert (explicit_MM[:WINDOW, WINDOW:] == 0).all()
    implicit_MM = state_jacobian_theorem(model, TOKENS)
    assert off_diagonal(implicit_MM[WINDOW:, WINDOW:]) > 1e-2
    assert (implicit_MM[:WINDOW, WINDOW:] != 0).any()


def test_an_explicit_model_has_autograd_alone() -> None:
    model = language_model("mamba2", mixer=MIXER, num_layers=1)
    found_MM = state_jacobian_autograd(model, TOKENS)
    assert off_diagonal(found_MM[WINDOW:, WINDOW:]) == 0
    with pytest.raises(ValueError, match="model: expected an implicit model"):
        state_jacobian_theorem(model, TOKENS)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny().float()
    assert isinstance(model.core, Equilibrium)
    solve = model.core.solve
    theorem_MM = state_jacobian_theorem(model, TOKENS)
    assert theorem_MM.dtype == torch.float64
    assert model.core.solve is solve
    assert model.training
    assert all(part.dtype == torch.float32 and part.requires_grad for part in model.parameters())


def test_what_has_no_such_jacobian_is_an_error() -> None:
    with pytest.raises(ValueError, match="recurrent model, got one whose state grows"):
        state_jacobian_autograd(equilibrium_model("attention"), TOKENS)
    with pytest.raises(ValueError, match="tokens: expected one sequence, got 2"):
        state_jacobian_theorem(tiny(), TOKENS.expand(2, 5))


@pytest.mark.parametrize("jacobian", [state_jacobian_autograd, state_jacobian_theorem])
def test_a_token_without_a_fixed_point_is_an_error(jacobian: Any) -> None:
    model = tiny()
    with torch.no_grad():
        model.embedding.fill_(torch.nan)
    with pytest.raises(NotConverged, match="the last token ended at a residual of"):
        jacobian(model, TOKENS)
