"""Mamba2 and Llama folders of Hugging Face's `transformers`: our explicit models.

What a folder's settings ask for and this package has not (biases, scaled rotary embeddings, clamped
time steps, …) is refused by name. Read `convert.py` next.
"""

import math

from equilm.hf.settings import Settings
from equilm.nn.attention import AttentionConfig
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import ModelConfig

LLAMA_PARTS = {
    "norm": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "mixer.wq": "self_attn.q_proj",
    "mixer.wk": "self_attn.k_proj",
    "mixer.wv": "self_attn.v_proj",
    "mixer.out_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w3": "mlp.up_proj",
    "mlp.w2": "mlp.down_proj",
}


def mamba2_name(name: str) -> str:
    """Return the name in a Mamba2 folder of one of our parameters."""
    whole = {"embedding": "backbone.embeddings.weight", "head": "lm_head.weight"}
    return whole.get(name) or "backbone." + name.removeprefix("core.")


def llama_name(name: str) -> str:
    """Return the name in a Llama folder of one of our parameters."""
    whole = {
        "embedding": "model.embed_tokens.weight",
        "head": "lm_head.weight",
        "core.norm_f.weight": "model.norm.weight",
    }
    if name in whole:
        return whole[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"model.layers.{layer}.{LLAMA_PARTS[part]}.weight"


def mamba2_config(settings: Settings, *, has_head: bool) -> ModelConfig:
    """Return the configuration of a Mamba2 folder.

    Args:
        settings: Of the folder.
        has_head: Whether it holds a head; decides where the settings are silent on tying.

    Raises:
        CheckpointError: For what this package has not.
    """
    for key in ("use_bias", "norm_before_gate"):
        settings.expect(key, False)
    for key in ("use_conv_bias", "rms_norm"):
        settings.expect(key, True)
    settings.expect("hidden_act", "silu", "swish")
    settings.expect("time_step_limit", [0.0, math.inf], [0.0, {"__float__": "Infinity"}])
    settings.refuse("quantization_config")
    width, head_width = settings.integer("hidden_size"), settings.integer("head_dim", 64)
    expand = settings.integer("expand", 2)
    settings.expect("num_heads", expand * width // max(head_width, 1))
    eps = settings.number("layer_norm_epsilon", 1e-5)
    return ModelConfig(
        vocab_size=settings.integer("vocab_size"),
        width=width,
        num_layers=settings.integer("num_hidden_layers"),
        mixer=Mamba2Config(
            expand=expand,
            head_width=head_width,
            state_size=settings.integer("state_size", 128),
            groups=settings.integer("n_groups", 8),
            conv_width=settings.integer("conv_kernel", 4),
            norm_eps=eps,
        ),
        norm_eps=eps,
        tie_embeddings=settings.flag("tie_word_embeddings", not has_head),
    )


def llama_config(settings: Settings, *, has_head: bool) -> ModelConfig:
    """Return the configuration of a Llama folder; the rest as for `mamba2_config`."""
    for key in ("attention_bias", "mlp_bias"):
        settings.expect(key, False)
    settings.expect("hidden_act", "silu", "swish")
    settings.refuse("rope_scaling", "quantization_config")
    width, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    settings.expect("head_dim", width // max(heads, 1))
    return ModelConfig(
        vocab_size=settings.integer("vocab_size"),
        width=width,
        num_layers=settings.integer("num_hidden_layers"),
        mixer=AttentionConfig(
            heads=heads,
            kv_heads=settings.integer("num_key_value_heads", heads),
            theta=_theta(settings),
        ),
        mlp_hidden=settings.integer("intermediate_size"),
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        tie_embeddings=settings.flag("tie_word_embeddings", not has_head),
    )


def _theta(settings: Settings) -> float:
    """The base of the rotary frequencies: a key of its own up to version 4, in a table since."""
    if "rope_parameters" not in settings:
        return settings.number("rope_theta", 10_000.0)
    rope = settings.table("rope_parameters")
    rope.expect("rope_type", "default")
    rope.expect("partial_rotary_factor", 1.0)
    return rope.number("rope_theta", 10_000.0)
