"""Sweeps in 8 bits: the same fixed point, repaired by what follows them in full."""

from dataclasses import replace

import pytest
import torch

from equilm.nn import equilibrium
from equilm.nn.equilibrium import Equilibrium
from tests.nn.build import equilibrium_model


@pytest.fixture(params=["mamba2", "attention"])
def core(request: pytest.FixtureRequest) -> Equilibrium:
    hidden = 48 if request.param == "attention" else None
    core = equilibrium_model(request.param, width=32, mlp_hidden=hidden).core
    assert isinstance(core, Equilibrium)
    return core


def test_without_the_hardware_it_says_so_and_solves_in_full(core: Equilibrium) -> None:
    x = torch.randn(2, 6, core.width, dtype=torch.float64)
    expected, _ = core(x)
    core.solve = replace(core.solve, precision="fp8")
    with pytest.warns(UserWarning, match=r"solve.precision: fp8 expects an NVIDIA GPU"):
        got, _ = core(x)
    assert torch.equal(got, expected)


def test_the_fixed_point_is_the_same_after_steps_in_full(
    core: Equilibrium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulation on a CPU rounds as the hardware does."""
    monkeypatch.setattr(equilibrium, "supported", lambda device: True)
    core.solve = replace(core.solve, tolerance=1e-6, max_steps=60, cycle=None)
    x = torch.randn(2, 6, core.width, dtype=torch.float64)
    weight = torch.randn_like(x)  # the squares of a norm's outputs add up to a constant
    exact, _ = core(x)
    exact_gradients = torch.autograd.grad((exact * weight).sum(), list(core.parameters()))
    core.solve = replace(core.solve, precision="fp8")
    cheap, _ = core(x)
    gradients = torch.autograd.grad((cheap * weight).sum(), list(core.parameters()))
    error = ((cheap - exact).norm() / exact.norm()).item()
    assert 1e-6 < error < 2e-2
    for got, expected in zip(gradients, exact_gradients, strict=True):
        cosine = torch.nn.functional.cosine_similarity(got.flatten(), expected.flatten(), dim=0)
        assert cosine > 0.99


def test_nothing_of_it_is_left_behind(core: Equilibrium, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equilibrium, "supported", lambda device: True)
    x = torch.randn(2, 6, core.width, dtype=torch.float64)
    u = core.inject(x).detach()
    with torch.no_grad():
        before, _ = core.body(x, None, u)
        core.solve = replace(core.solve, precision="fp8")
        core(x)
        after, _ = core.body(x, None, u)
    assert torch.equal(before, after)
