"""The language model as a whole: its edge, its initial values, its sizes."""

import math
import re
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from equilm.nn.attention import Attention, AttentionConfig
from equilm.nn.block import Stack
from equilm.nn.equilibrium import Equilibrium, EquilibriumConfig
from equilm.nn.linear import Weight
from equilm.nn.local import LocalConfig
from equilm.nn.lru import LRU
from equilm.nn.mamba2 import Mamba2, Mamba2Config
from equilm.nn.model import (
    MIXERS,
    LanguageModel,
    MixerConfig,
    ModelConfig,
    parameter_count,
)
from equilm.nn.norm import RMSNorm
from tests.nn.build import SMALL, VOCAB, equilibrium_model, language_model, tokens_of
from tests.tolerance import assert_close


def test_every_row_of_the_table_is_whole() -> None:
    assert set(SMALL) <= set(MIXERS)
    assert set(get_args(MixerConfig)) == {config_class for config_class, _ in MIXERS.values()}
    for kind, (config_class, mixer_class) in MIXERS.items():
        small = SMALL.get(kind, config_class())
        assert isinstance(small, config_class)
        assert config_class().kind == kind
        mixer = mixer_class(small, 8, weight_norm=False, dropout=0.0)
        assert mixer.inject_width > 0


def test_a_parameter_that_nobody_sets_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LRU, "initialise_own", lambda self, generator: None)
    with pytest.raises(AssertionError, match=r"core\.layers\.0\.mixer\..*: set by no"):
        language_model("lru")


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("build", [language_model, equilibrium_model])
@torch.no_grad()
def test_a_prompt_and_then_token_by_token(kind: str, build: Any) -> None:
    model, tokens_BT = build(kind), tokens_of(3, 7)
    expected_BTV, _ = model(tokens_BT)
    prompt_BTV, state = model(tokens_BT[:, :4], model.init_state(3, 7))
    logits = [prompt_BTV]
    for t in range(4, 7):
        logits_BTV, state = model(tokens_BT[:, t : t + 1], state)
        logits.append(logits_BTV)
    assert_close("equilibrium", torch.cat(logits, dim=1), expected_BTV)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(2, 0), "tokens: expected (batch >= 1, length >= 1), got (2, 0)"),
        (torch.zeros(0, 3), "tokens: expected (batch >= 1, length >= 1), got (0, 3)"),
        (torch.zeros(3), "tokens: expected (batch >= 1, length >= 1), got (3,)"),
        (torch.tensor([[0, 11]]), "tokens: expected ids in [0, 11), got 11"),
        (torch.tensor([[3, -1]]), "tokens: expected ids in [0, 11), got -1"),
    ],
)
def test_bad_tokens_are_named(tokens: Tensor, message: str) -> None:
    # Padding rows of the embedding are no tokens.
    model = language_model("mamba2", vocab_multiple=8)
    with pytest.raises(ValueError, match=re.escape(message)):
        model(tokens.long())


@pytest.mark.parametrize("valid", [[-1, 2], [0, 4], [1], [[1, 2]]])
def test_bad_counts_of_valid_tokens_are_named(valid: Any) -> None:
    message = f"valid: expected 2 counts in [0, 3], got {valid}"
    with pytest.raises(ValueError, match=re.escape(message)):
        language_model("mamba2")(tokens_of(2, 3), valid_B=torch.tensor(valid))


@pytest.mark.parametrize("build", [language_model, equilibrium_model])
def test_a_state_without_room_is_an_error(build: Any) -> None:
    model = build("attention")
    with torch.no_grad():
        _, state = model(tokens_of(2, 3), model.init_state(2, 5))
        model(tokens_of(2, 2), state)
        with pytest.raises(ValueError, match=r"state: expected room for 3 tokens, got 2; .*init"):
            model(tokens_of(2, 3), state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width: expected an integer >= 1, got 0"),
        ({"num_layers": -1}, "num_layers: expected an integer >= 1, got -1"),
        ({"vocab_multiple": 0}, "vocab_multiple: expected an integer >= 1, got 0"),
        ({"norm_eps": 0.0}, "norm_eps: expected a number > 0, got 0.0"),
        ({"vocab_size": None}, "vocab_size: expected the number of tokens, got none"),
        ({"mixer": Mamba2Config(head_width=5)}, "mixer.head_width: expected a divisor of"),
        (
            {"mixer": Mamba2Config(head_width=8, groups=3)},
            "mixer.groups: expected a divisor of 2 heads, got 3",
        ),
        ({"mixer": AttentionConfig(heads=8)}, "mixer.heads: expected a divisor of width / 2 = 4"),
        (
            {"mixer": AttentionConfig(heads=4, kv_heads=3)},
            "mixer.kv_heads: expected a divisor of 4 heads, got 3",
        ),
        ({"dropout": 1.0}, "dropout: expected a number in [0, 1), got 1.0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        language_model("mamba2", **arguments)


def test_the_vocabulary_is_padded_inside_only() -> None:
    model = language_model("mamba2", vocab_multiple=8)
    assert model.embedding.shape == (16, 8)
    logits_BTV, _ = model(tokens_of(2, 3))
    assert logits_BTV.shape == (2, 3, VOCAB)
    z_BTD = torch.randn(2, 3, 8, dtype=torch.float64)
    assert_close("mixer", model.logits(z_BTD), z_BTD @ model.embedding[:VOCAB].T)


def test_an_untied_head_is_its_own_table() -> None:
    model = language_model("mamba2", tie_embeddings=False)
    assert model.head is not None
    z_BTD = torch.randn(2, 3, 8, dtype=torch.float64)
    assert_close("mixer", model.logits(z_BTD), z_BTD @ model.head.T)
    tied = language_model("mamba2")
    assert parameter_count(model) == parameter_count(tied) + model.head.numel()


def test_the_same_generator_gives_the_same_model() -> None:
    one, two, other = (language_model("mamba2", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["embedding"], other["embedding"])


@pytest.fixture(scope="module", params=MIXERS)
def large(request: pytest.FixtureRequest) -> LanguageModel:
    """Large enough for statistics."""
    mixers: dict[str, Any] = {
        "mamba2": Mamba2Config(head_width=2),
        "attention": AttentionConfig(heads=4),
        "local": LocalConfig(heads=4),
    }
    config = ModelConfig(
        vocab_size=500,
        width=256,
        num_layers=2,
        mlp_hidden=256,
        mixer=mixers.get(request.param) or MIXERS[request.param][0](),
        weight_norm=True,
        equilibrium=EquilibriumConfig(),
    )
    return LanguageModel(config, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_initial_values_are_those_of_the_table(large: LanguageModel) -> None:
    for parameter in large.parameters():
        assert torch.isfinite(parameter).all()
    assert abs(float(large.embedding.std()) - 0.02) < 1e-3
    for name, part in large.named_modules():
        if isinstance(part, Weight):
            weight = part.effective()
            bound = 1 / math.sqrt(math.prod(weight.shape[1:]))
            if name.endswith(("out_proj", "w2")):
                bound /= math.sqrt(4)
            assert 0.98 * bound < float(weight.abs().max()) <= bound * (1 + 1e-5), name
            torch.testing.assert_close(part.weight_v, weight)
        elif isinstance(part, RMSNorm):
            assert (part.weight == 1).all()


@torch.no_grad()
def test_initial_time_steps_and_decays_are_those_published() -> None:
    config = ModelConfig(vocab_size=5, width=512, num_layers=1, mixer=Mamba2Config(head_width=1))
    model = LanguageModel(config, generator=torch.Generator().manual_seed(0))
    (mixer,) = [part for part in model.modules() if isinstance(part, Mamba2)]
    dt_H = torch.nn.functional.softplus(mixer.dt_bias)
    assert 0.99e-3 <= float(dt_H.min()) < 1.1e-3
    assert 0.95e-1 < float(dt_H.max()) <= 1.01e-1
    assert abs(float(dt_H.log().mean()) - math.log(1e-2)) < 0.1
    decay_H = mixer.A_log.exp()
    assert 1 <= float(decay_H.min()) < 1.1
    assert 15.9 < float(decay_H.max()) <= 16
    assert abs(float(decay_H.mean()) - 8.5) < 0.3
    assert (mixer.D == 1).all()


def test_the_biases_of_the_injection_start_at_zero(large: LanguageModel) -> None:
    assert isinstance(large.core, Equilibrium)
    assert large.core.injection.bias is not None
    assert (large.core.injection.bias == 0).all()


def test_an_explicit_model_is_a_stack_an_implicit_one_its_equilibrium() -> None:
    assert isinstance(language_model("mamba2").core, Stack)
    implicit = equilibrium_model("mamba2").core
    assert isinstance(implicit, Equilibrium)
    assert isinstance(implicit.body, Stack)


@pytest.mark.parametrize("kind", MIXERS)
def test_operations_of_a_token(kind: str) -> None:
    one, two = language_model(kind, num_layers=1), language_model(kind, num_layers=2)
    assert two.core.flops_per_token(10) == 2 * one.core.flops_per_token(10)
    assert equilibrium_model(kind).core.flops_per_token(10) == two.core.flops_per_token(10)
    weights = [part.effective() for part in one.core.modules() if isinstance(part, Weight)]
    projections = 2 * sum(weight.numel() for weight in weights)
    longer = one.core.flops_per_token(1000) - one.core.flops_per_token(0)
    if kind in ("attention", "local"):
        assert one.core.flops_per_token(0) == projections
        # Scores and mixing: half of a thousand keys, or of three; two products of width 8 each.
        seen = 500 if kind == "attention" else 3 - 3 * 1.5 / 1000
        assert math.isclose(longer, 2 * 2 * 8 * seen)
    else:
        assert one.core.flops_per_token(0) > projections
        assert longer == 0


def test_attention_buffers_hold_their_capacity() -> None:
    attention = Attention(SMALL["attention"], 8)
    state = attention.init_state(2, 5)
    assert state.key_BSHP.shape == state.value_BSHP.shape == (2, 6, 1, 4)
    assert state.length_B.tolist() == [0, 0]
