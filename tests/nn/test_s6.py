"""S6 against Mamba of transformers with the same weights, and its initial values."""

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
