"""S6 against Mamba of transformers with the same weights, and its initial values."""

from typing import Literal

import pytest
import torch
from torch.nn.functional import softplus
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaForCausalLM

from equilm.nn.model import LanguageModel, ModelConfig
from equilm.nn.s6 import S6, S6Config
from tests.nn.build import WIDTH
from tests.nn.reference import mixer_of
from tests.tolerance import assert_close


@torch.no_grad()
def test_logits_are_those_of_transformers() -> None:
    mixer = S6Config(state_size=5, step_rank=3, conv_width=3)
    config = ModelConfig(vocab_size=11, width=16, num_layers=2, mixer=mixer)
    ours = LanguageModel(config, generator=torch.Generator().manual_seed(0))
    theirs = MambaForCausalLM(
        MambaConfig(
            vocab_size=11,
            hidden_size=16,
            num_hidden_layers=2,
            state_size=5,
            time_step_rank=3,
            conv_kernel=3,
            use_mambapy=False,
        )
    )
    renamed = {"embedding": "backbone.embeddings.weight"}
    renamed |= {"core.norm_f.weight": "backbone.norm_f.weight"}
    for name, _ in ours.named_parameters():
        theirs_name = name.replace("core.layers", "backbone.layers")
        renamed.setdefault(name, theirs_name.replace("dt_bias", "dt_proj.bias"))
    state = {renamed[name]: tensor for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict(state | {"lm_head.weight": ours.embedding})
    tokens_BT = torch.randint(11, (2, 40))
    assert_close("mixer", ours(tokens_BT)[0], theirs(tokens_BT).logits)


@pytest.mark.parametrize("init", ["real", "half", "random", "lin"])
@torch.no_grad()
def test_initial_values(init: str) -> None:
    config = S6Config(state_size=6, expand=64, init=init)  # type: ignore[arg-type]
    mixer: S6 = mixer_of(config)
    dt_I = softplus(mixer.dt_bias)
    assert 0.99e-3 < float(dt_I.min()) < 1.2e-3
    assert 0.09 < float(dt_I.max()) < 0.101
    rates_IN = mixer.A_log.exp()
    half_N = torch.full((6,), 0.5)
    expected = {"real": torch.arange(1.0, 7.0), "half": half_N, "lin": half_N}
    if init in expected:
        expected_IN = expected[init].double().expand_as(rates_IN)
        torch.testing.assert_close(rates_IN, expected_IN, atol=0, rtol=1e-6)
    else:
        assert abs(float(mixer.A_log.mean())) < 0.1 < float(mixer.A_log.std())
    assert hasattr(mixer, "A_imag") == (init == "lin")
    if init == "lin":
        angles_IN = rates_IN * 0 + torch.pi * torch.arange(6)
        torch.testing.assert_close(mixer.A_imag, angles_IN, atol=1e-6, rtol=1e-6)


def test_the_complex_state_keeps_the_law_of_chunks_and_has_gradients() -> None:
    mixer: S6 = mixer_of(S6Config(state_size=3, init="lin"))
    x_BTD = torch.randn(2, 70, WIDTH, dtype=torch.float64)
    valid_B = torch.tensor([70, 31])
    y_BTD, last = mixer(x_BTD, mixer.init_state(2, 0), None, valid_B)
    first_BTD, state = mixer(x_BTD[:, :31])
    rest_BTD, after = mixer(x_BTD[:, 31:], state)
    assert_close("mixer", torch.cat([first_BTD, rest_BTD], 1)[0], y_BTD[0])
    assert_close("mixer", torch.stack([after.scan_BIX[0], state.scan_BIX[1]]), last.scan_BIX)
    (y_BTD.square().sum() + last.scan_BIX.square().sum()).backward()
    for name in ("A_log", "A_imag", "dt_bias", "x_proj.weight"):
        grad = mixer.get_parameter(name).grad
        assert grad is not None
        assert grad.abs().min() > 0, name


@pytest.mark.parametrize(
    "selective", [(), ("step",), ("b",), ("c",), ("step", "b"), ("step", "c"), ("b", "c")]
)
@pytest.mark.parametrize("init", ["real", "lin"])
def test_what_is_not_selective_is_the_same_for_every_token(
    selective: tuple[Literal["step", "b", "c"], ...], init: Literal["real", "lin"]
) -> None:
    mixer: S6 = mixer_of(S6Config(state_size=3, init=init, selective=selective))
    x_BTI = torch.randn(2, 5, mixer.inner, dtype=torch.float64)
    parts = dict(zip(("step", "b", "c"), mixer._selected(x_BTI, torch.float64), strict=True))
    for name, part_BTX in parts.items():
        alike = bool((part_BTX == part_BTX[:1, :1]).all())
        assert alike == (name not in selective), name
    y_BTD, state = mixer(torch.randn(2, 5, WIDTH, dtype=torch.float64))
    (y_BTD.square().sum() + state.scan_BIX.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in mixer.parameters())


def test_a_time_invariant_s6_is_a_convolution() -> None:
    mixer: S6 = mixer_of(S6Config(state_size=3, selective=()))
    x_BTI = torch.randn(1, 9, mixer.inner, dtype=torch.float64)
    y_BTI, _ = mixer._scan(x_BTI, None, None)
    later_BTI, _ = mixer._scan(torch.nn.functional.pad(x_BTI, (0, 0, 4, 0)), None, None)
    assert_close("mixer", later_BTI[:, 4:], y_BTI)
    linear_BTI, _ = mixer._scan(2 * x_BTI, None, None)
    assert_close("mixer", linear_BTI, 2 * y_BTI)


def test_a_name_is_selective_once() -> None:
    with pytest.raises(ValueError, match=r"selective: expected each name once, got \('b', 'b'\)"):
        S6Config(selective=("b", "b"))
