"""Weight decay reaches the matrices alone; rates and clips do what they say."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from equilm.nn.attention import AttentionConfig
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import LanguageModel, ModelConfig
from equilm.train.optim import OptimConfig, build_optimizer, clip_gradients, set_rate
from tests.train.tiny import MODEL

MODELS = {
    "mamba2": replace(MODEL, vocab_size=6),
    "plain mamba2": ModelConfig(
        vocab_size=6, width=16, num_layers=1, mixer=Mamba2Config(head_width=8, state_size=4)
    ),
    "llama": ModelConfig(
        vocab_size=6,
        width=16,
        num_layers=1,
        mixer=AttentionConfig(heads=2),
        mlp_hidden=24,
        tie_embeddings=False,
    ),
}


def build(config: ModelConfig) -> LanguageModel:
    return LanguageModel(config, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_matrices_decay_and_nothing_else(config: ModelConfig) -> None:
    model = build(config)
    decayed, plain = build_optimizer(model, OptimConfig(weight_decay=0.5)).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        {names[id(p)].rpartition(".")[2] for p in group["params"]} for group in (decayed, plain)
    ]
    assert found[0] == ({"weight_v"} if config.weight_norm else {"weight"})
    assert not found[1] & {"weight_v"}
    assert {"embedding"} <= found[1]
    assert all(p.ndim >= 2 for p in decayed["params"])
    sizes = [len(group["params"]) for group in (decayed, plain)]
    assert sum(sizes) == len(names)


def test_an_update_without_gradient_shrinks_matrices_alone() -> None:
    model = build(MODELS["llama"])
    before = {name: leaf.detach().clone() for name, leaf in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(rate=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, leaf in model.named_parameters():
        is_matrix = leaf.ndim == 2 and name not in ("embedding", "head")
        assert torch.allclose(leaf, before[name] * (0.95 if is_matrix else 1.0)), name


def test_the_rate_reaches_every_group() -> None:
    optimizer = build_optimizer(build(MODELS["mamba2"]), OptimConfig())
    set_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


def test_gradients_are_scaled_down_and_never_up() -> None:
    layer = nn.Linear(2, 2, bias=False)
    for norm, expected in ((5.0, 0.25), (0.2, 0.2)):
        layer.weight.grad = torch.tensor([[3.0, 0.0], [0.0, 4.0]]) * norm / 5
        assert clip_gradients(layer, 0.25).item() == pytest.approx(norm)
        assert layer.weight.grad.norm().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rate": 0.0}, "rate: expected a number > 0, got 0.0"),
        ({"clip": -1.0}, "clip: expected a number > 0, got -1.0"),
        ({"rate": float("nan")}, "rate: .*got nan"),
        ({"weight_decay": -0.1}, "weight_decay: expected a number >= 0, got -0.1"),
        ({"betas": (0.9, 1.0)}, r"betas: .*got \(0.9, 1.0\)"),
    ],
)
def test_a_setting_out_of_range_is_named(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        OptimConfig(**settings)
