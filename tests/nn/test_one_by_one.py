"""Token by token in step is what each row finds at its own pace."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from equilm import tree
from equilm.nn.equilibrium import Equilibrium, EquilibriumConfig, observed
from equilm.nn.gated import Gated
from equilm.nn.linear import prepared
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import LanguageModel, ModelConfig
from equilm.nn.one_by_one import Walk
from equilm.solve import Solve

SOLVE = Solve(tolerance=1e-3, max_steps=20, window=1)


def core_of(device: str = "cpu", stream: Any = "state") -> tuple[LanguageModel, Equilibrium]:
    config = ModelConfig(
        vocab_size=20,
        width=32,
        num_layers=2,
        mixer=Mamba2Config(expand=2, head_width=16, state_size=8, conv_width=3),
        equilibrium=EquilibriumConfig(solve=SOLVE, stream=stream),
    )
    model = LanguageModel(config, generator=torch.Generator().manual_seed(0)).to(device).eval()
    assert isinstance(model.core, Equilibrium)
    if isinstance(model.core.body, Gated):
        model.core.body.gate.data.fill_(0.3)
    assert model.core.body.spares_states
    return model, model.core


@torch.no_grad()
@pytest.mark.parametrize(
    "solve",
    [
        SOLVE,
        replace(SOLVE, check_every=7),
        replace(SOLVE, check_every=50),
        replace(SOLVE, max_steps=3, check_every=2),
    ],
)
@pytest.mark.parametrize("stream", ["state", "gated"])
def test_the_same_as_the_sliding_window(solve: Solve, stream: Any) -> None:
    model, core = core_of(stream=stream)
    core.solve = replace(solve, check_every=1)
    tokens_BT = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(1))
    state = model(tokens_BT[:, :4])[1]
    x_BTD = model.embed(tokens_BT[:, 4:])
    with observed(model) as solutions:
        expected_BTD, after = core(x_BTD, state)
    with prepared(core):
        before = tree.map_(torch.clone, state)
        walk = Walk(core.body, core.inject(x_BTD), state, 32, solve, records=False)
        found = walk.run()
    assert found.last is not None
    torch.testing.assert_close(found.last[0], expected_BTD, rtol=1e-4, atol=1e-5)
    for name in ("steps", "status"):
        assert getattr(found, name).equal(getattr(solutions[0], name))
    torch.testing.assert_close(found.residual, solutions[0].residual, rtol=1e-3, atol=1e-6)
    for leaf, wanted in zip(tree.leaves(found.last[1]), tree.leaves(after), strict=True):
        torch.testing.assert_close(leaf, wanted, rtol=1e-4, atol=1e-5)
    for leaf, old in zip(tree.leaves(state), tree.leaves(before), strict=True):
        assert leaf.equal(old)


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize(("check_every", "stream"), [(8, "state"), (64, "state"), (8, "gated")])
def test_graphs_give_what_a_cpu_finds(check_every: int, stream: Any) -> None:
    tokens_BT = torch.randint(20, (3, 80), generator=torch.Generator().manual_seed(1))
    results = []
    for device in ("cpu", "cuda"):
        model, core = core_of(device, stream)
        core.solve = replace(SOLVE, tolerance=1e-5, max_steps=64, check_every=check_every)
        logits_BTV, _ = model(tokens_BT.to(device))
        results.append(logits_BTV.cpu())
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)
