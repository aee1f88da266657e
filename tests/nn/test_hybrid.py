"""Patterns of layers keep the laws, explicit and implicit; they decode, train, save and load."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from equilm.config import ConfigError, decode, encode
from equilm.decode.engine import Engine
from equilm.nn.attention import AttentionConfig
from equilm.nn.block import Stack
from equilm.nn.folder import load_model, save_model
from equilm.nn.hybrid import HybridConfig
from equilm.nn.mixer import Mixer
from equilm.nn.model import LanguageModel, ModelConfig, parameter_count
from equilm.solve import Implicit, Picard, Solve
from equilm.tasks import cross_entropy_sum
from tests.decode.plain import plain, ragged, run
from tests.nn import test_laws
from tests.nn.build import WIDTH, tokens_of
from tests.nn.patterns import PATTERNS, hybrid_model, implicit_hybrid

# An equilibrium takes other paths while autograd records; each way by one pattern at least.
CASES = [(name, "stack", recording) for name in PATTERNS for recording in (True, False)]
CASES += [
    (name, "equilibrium", recording)
    for name, recording in (("griffin", False), ("jamba", True), ("zamba", False))
]


@pytest.mark.parametrize(("name", "form", "recording"), CASES)
def test_the_laws_hold(name: str, form: str, recording: bool) -> None:
    with torch.set_grad_enabled(recording):
        check_laws(name, form)


def check_laws(name: str, form: str) -> None:
    mixer: Mixer = hybrid_model(name).core
    operation = "mixer"
    if form == "equilibrium":
        operation = "equilibrium"
        solve = Solve(
            solver=Picard(damping=1.0), tolerance=1e-7, max_steps=100, cycle=None, window=2
        )
        mixer = implicit_hybrid(name, solve=solve, gradient=Implicit()).core
    x_BTD = torch.randn(3, test_laws.TOKENS, WIDTH, dtype=torch.float64)
    inject_BTE = torch.randn(3, test_laws.TOKENS, mixer.inject_width, dtype=torch.float64)
    test_laws.test_causal(mixer, x_BTD, inject_BTE, operation)
    test_laws.test_the_injection_enters_at_every_token(mixer, x_BTD)
    test_laws.test_chunk(mixer, x_BTD, inject_BTE, [1, 2, 1], operation)
    test_laws.test_value(mixer, x_BTD, inject_BTE, operation)
    test_laws.test_row(mixer, x_BTD, inject_BTE, operation)
    test_laws.test_empty(mixer, x_BTD, inject_BTE, operation)
    for start in ("empty", "filled"):
        test_laws.test_valid(mixer, x_BTD.clone(), inject_BTE, start, operation)
    test_laws.test_rows_of_different_lengths_go_on(mixer, x_BTD, operation)
    if mixer.takes_starts:
        test_laws.test_reset(mixer, "filled", True, form, operation)


def test_every_part_of_the_injection_enters_its_own_layers() -> None:
    stack = hybrid_model("griffin").core
    assert isinstance(stack, Stack)
    recurrent, local = (stack.blocks[place].mixer.inject_width for place in (0, 2))
    assert stack.inject_width == recurrent + local
    x_BTD = torch.randn(1, 3, WIDTH, dtype=torch.float64)
    inject_BTE = torch.zeros(1, 3, stack.inject_width, dtype=torch.float64)
    changed_BTE = inject_BTE.index_fill(2, torch.arange(recurrent, stack.inject_width), 1.0)
    states, changed = (stack(x_BTD, None, inject)[1] for inject in (inject_BTE, changed_BTE))
    assert torch.equal(states[1].hidden_BI, changed[1].hidden_BI)
    assert not torch.equal(states[2].key_BWHP, changed[2].key_BWHP)


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("name", PATTERNS)
def test_the_engine_is_the_plain_loop(name: str, implicit: bool) -> None:
    def build() -> LanguageModel:
        return (implicit_hybrid if implicit else hybrid_model)(name).eval()

    engine = Engine(build(), slots=2, capacity=40, window=1, short=4)
    requests = ragged(4)
    assert run(engine, requests) == [plain(build(), each) for each in requests]


@pytest.mark.parametrize("name", PATTERNS)
def test_it_trains_inside_an_equilibrium(name: str) -> None:
    model = implicit_hybrid(name, solve=Solve(tolerance=1e-2, max_steps=20)).float()
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    tokens_BT = tokens_of(8, 6)
    losses: list[float] = []
    while len(losses) < 60 and (not losses or losses[-1] >= 0.5 * losses[0]):
        loss, count = cross_entropy_sum(model(tokens_BT)[0], tokens_BT)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        losses.append((loss / count).item())
    assert losses[-1] < 0.5 * losses[0]
    for name, value in model.named_parameters():
        assert not torch.equal(value, before[name]), f"{name} has no gradient"


def test_layers_that_share_have_one_set_of_parameters_and_a_state_each(tmp_path: Path) -> None:
    model = hybrid_model("zamba")
    stack = model.core
    assert isinstance(stack, Stack)
    assert stack.order == (0, 1, 2, 1)
    assert stack.blocks[1] is stack.blocks[3]
    layers, _ = PATTERNS["zamba"]
    apart = HybridConfig(layers=tuple(replace(layer, share=None) for layer in layers))
    block = parameter_count(stack.blocks[1])
    assert parameter_count(hybrid_model("zamba", mixer=apart)) == parameter_count(model) + block
    tokens_BT = tokens_of(2, 5)
    logits_BTV, state = model(tokens_BT)
    assert not torch.equal(state[1].key_BSHP, state[3].key_BSHP)
    save_model(model, tmp_path / "saved")
    assert torch.equal(load_model(tmp_path / "saved")(tokens_BT)[0], logits_BTV)


def test_a_pattern_of_one_layer_is_the_plain_model() -> None:
    (layer, *_), _ = PATTERNS["griffin"]
    plain_model = hybrid_model("griffin", mixer=layer.mixer, mlp_hidden=12)
    pattern = hybrid_model("griffin", mixer=HybridConfig(layers=(layer,)))
    assert plain_model.state_dict().keys() == pattern.state_dict().keys()
    tokens_BT = tokens_of(2, 5)
    assert torch.equal(plain_model(tokens_BT)[0], pattern(tokens_BT)[0])


@pytest.mark.parametrize("name", PATTERNS)
def test_recipes_read_what_they_write(name: str) -> None:
    config = hybrid_model(name).config
    assert decode(ModelConfig, encode(config)) == config


@pytest.mark.parametrize(
    ("layers", "settings", "told"),
    [
        ([], {}, "mixer.layers: expected at least one, got none"),
        (
            [{"mixer": {"kind": kind}, "share": "a"} for kind in ("attention", "s6")],
            {},
            "mixer.layers: expected all that share 'a' to be alike, got two kinds",
        ),
        (
            [{"mixer": {"kind": "s6"}}],
            {"mlp_hidden": 8},
            "mlp_hidden: expected none beside layers, each of which has its own",
        ),
        (
            [{"mixer": {"kind": "s6"}, "mlp": {"kind": "experts", "hidden": 4, "chosen": 17}}],
            {},
            "mixer.layers.0.mlp.chosen: expected at most the 16 experts, got 17",
        ),
        (
            [{"mixer": {"kind": "local", "window": 0}}],
            {},
            "mixer.layers.0.mixer.window: expected an integer >= 1, got 0",
        ),
    ],
)
def test_settings_that_do_not_fit(
    layers: list[object], settings: dict[str, int], told: str
) -> None:
    table = {"width": 8, "num_layers": 2, "mixer": {"kind": "hybrid", "layers": layers}}
    with pytest.raises(ConfigError) as error:
        decode(ModelConfig, table | settings)
    assert str(error.value) == f"recipe: {told}"


def test_a_full_attention_buffer_behind_experts_is_told() -> None:
    model = hybrid_model("jamba")
    assert any(isinstance(layer.mixer, AttentionConfig) for layer in PATTERNS["jamba"][0])
    with pytest.raises(ValueError, match=r"^state: expected room for 5 tokens, got 4"):
        model(tokens_of(1, 5), model.init_state(1, 4))
