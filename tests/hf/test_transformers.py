"""Random folders of `transformers` give the same logits here, for prompts and in decoding."""

from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from equilm.hf.convert import convert, load
from equilm.nn.attention import AttentionConfig
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import LanguageModel

transformers = pytest.importorskip("transformers")

VOCAB, WIDTH, PROMPT, LENGTH = 50, 32, 9, 21
MAMBA2: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "head_dim": 8,
    "num_heads": 8,
    "state_size": 16,
}
LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "num_attention_heads": 4,
}
CASES: dict[str, dict[str, Any]] = {
    "mamba2": MAMBA2 | {"n_groups": 1, "tie_word_embeddings": True},
    "mamba2-groups": MAMBA2 | {"n_groups": 2, "layer_norm_epsilon": 1e-3},
    "mamba2-wide": MAMBA2 | {"n_groups": 4, "expand": 3, "num_heads": 12, "conv_kernel": 3},
    "llama": LLAMA | {"tie_word_embeddings": True},
    "llama-grouped": LLAMA | {"num_key_value_heads": 2, "rms_norm_eps": 1e-3},
    "llama-theta": LLAMA
    | {
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
}


def build(name: str) -> Any:
    """Return a model of theirs whose every parameter differs from its initial value."""
    from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated

    groups = CASES[name].get("n_groups", 1)
    if groups > 1 and "group_size" not in signature(MambaRMSNormGated).parameters:
        pytest.skip("this version of transformers takes the gated norm over all groups at once")
    torch.manual_seed(0)
    family = name.split("-")[0]
    config, model_class = {
        "mamba2": (transformers.Mamba2Config, transformers.Mamba2ForCausalLM),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }[family]
    model = model_class(config(**CASES[name])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def decode(theirs: Any, tokens_BT: Tensor) -> Tensor:
    """Their logits for a prompt and then token by token with their cache."""
    key = "cache_params" if theirs.config.model_type == "mamba2" else "past_key_values"
    out = theirs(tokens_BT[:, :PROMPT], use_cache=True)
    pieces = [out.logits]
    for token_B1 in tokens_BT[:, PROMPT:].split(1, dim=1):
        out = theirs(token_B1, use_cache=True, **{key: out[key]})
        pieces.append(out.logits)
    return torch.cat(pieces, dim=1)


def decode_ours(ours: LanguageModel, tokens_BT: Tensor) -> Tensor:
    """Our logits for a prompt and then token by token from the state."""
    logits_BTV, state = ours(tokens_BT[:, :PROMPT], ours.init_state(*tokens_BT.shape))
    pieces = [logits_BTV]
    for tokens_B1 in tokens_BT[:, PROMPT:].split(1, dim=1):
        logits_B1V, state = ours(tokens_B1, state)
        pieces.append(logits_B1V)
    return torch.cat(pieces, dim=1)


def error(got: Tensor, expected: Tensor) -> float:
    """‖got − expected‖ / ‖expected‖."""
    assert got.shape == expected.shape
    return float((got - expected).norm() / expected.norm())


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_logits_are_theirs(name: str, tmp_path: Path) -> None:
    theirs = build(name)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    tokens_BT = torch.randint(VOCAB, (3, LENGTH))
    expected_BTV = theirs(tokens_BT).logits
    assert error(ours(tokens_BT)[0], expected_BTV) < 1e-5
    assert error(decode_ours(ours, tokens_BT), expected_BTV) < 1e-5
    assert error(decode_ours(ours, tokens_BT), decode(theirs, tokens_BT)) < 1e-5


def test_settings_are_theirs(tmp_path: Path) -> None:
    build("mamba2-wide").save_pretrained(tmp_path / "mamba2")
    config = load(tmp_path / "mamba2").config
    assert config.mixer == Mamba2Config(
        expand=3, head_width=8, state_size=16, groups=4, conv_width=3, norm_eps=1e-5
    )
    assert not config.tie_embeddings
    assert config.equilibrium is None
    build("llama-theta").save_pretrained(tmp_path / "llama")
    config = load(tmp_path / "llama").config
    assert config.mixer == AttentionConfig(heads=4, kv_heads=1, theta=500.0)
    assert config.norm_eps == 1e-6


@torch.no_grad()
@pytest.mark.parametrize("name", ["mamba2-groups", "llama-grouped"])
def test_shards_and_half_precision_and_our_own_folder(name: str, tmp_path: Path) -> None:
    theirs = build(name).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    assert len(list((tmp_path / "source").glob("model-*.safetensors"))) > 1
    convert(tmp_path / "source", tmp_path / "target")
    ours = load(tmp_path / "target")
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    tokens_BT = torch.randint(VOCAB, (2, LENGTH))
    theirs = type(theirs).from_pretrained(tmp_path / "source", dtype=torch.float32).eval()
    assert error(ours(tokens_BT)[0], theirs(tokens_BT).logits) < 1e-5
