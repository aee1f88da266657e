"""Our models as folders of others: Hugging Face's Mamba2 and Llama, and the public reference's.

The way back is `convert.py`, and before anything is written the settings are read back by it: what
a format cannot say is refused, so that a round trip is bit for bit. Nothing is imported from
either. Read `transformers_folder.py` and `reference.py` for what the settings mean.
"""

import json
import math
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from equilm.hf.convert import FORMATS, load
from equilm.hf.settings import Settings
from equilm.nn.atomic import write_folder
from equilm.nn.attention import AttentionConfig
from equilm.nn.folder import CONFIG, WEIGHTS, CheckpointError, read_json
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import LanguageModel, ModelConfig
from equilm.solve.gradient import Implicit, Phantom
from equilm.solve.picard import Picard

Table = dict[str, Any]


def write_foreign(source: str | os.PathLike[str], target: str | os.PathLike[str], to: str) -> None:
    """Write what `load` makes of `source` as a folder of another program.

    Args:
        source: Any folder that `load` reads.
        target: The folder; one of the same kind is replaced, files it does not know included.
        to: "mamba2" or "llama", Hugging Face's, of explicit models; or "reference".

    Raises:
        CheckpointError: As `load`; also if `target` is there and is of another kind.
        ValueError: If that format cannot hold the model; names what it has not.
        OSError: If it could not be written; what was there is as it was.
    """
    model, target = load(source), Path(target)
    kind, settings = _settings(model.config, to)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        there = (target / CONFIG).exists() and read_json(target / CONFIG).get("model_type")
        if there != kind:
            raise CheckpointError(f"{target}: is there and is no {kind} folder; choose another")
    _check(model.config, kind, settings)
    tensors = _tensors(model, kind)
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    text = json.dumps(settings, indent=2) + "\n"
    write_folder(target.resolve(), {CONFIG: text.encode(), WEIGHTS: data})


def _settings(config: ModelConfig, to: str) -> tuple[str, Table]:
    family = type(config.mixer)
    if family not in (Mamba2Config, AttentionConfig):
        raise ValueError(f"mixer: {to} folders have no {config.mixer.kind}")
    if to == "reference":
        kind = "implicit_mamba2" if family is Mamba2Config else "implicit_llama3"
        return kind, {"model_type": kind, **_reference(config)}
    written = {"mamba2": (Mamba2Config, _mamba2), "llama": (AttentionConfig, _llama)}
    wanted, write = written[to]
    if family is not wanted:
        raise ValueError(f"mixer: {to} folders have no {config.mixer.kind}")
    return to, {"model_type": to, **write(config), "tie_word_embeddings": config.tie_embeddings}


def _check(config: ModelConfig, kind: str, settings: Table) -> None:
    """Refuse what is not there when the settings are read back."""
    # The padding of a vocabulary takes part in nothing, and folders of the library have none.
    padded = kind.startswith("implicit_")
    expected = config if padded else replace(config, vocab_multiple=1)
    has_head = not config.tie_embeddings
    found = FORMATS[kind].config(Settings(settings, kind), has_head=has_head)
    for field in fields(ModelConfig):
        ours, theirs = getattr(expected, field.name), getattr(found, field.name)
        if ours != theirs:
            raise ValueError(f"{field.name}: {kind} folders cannot hold {ours}, only {theirs}")


def _tensors(model: LanguageModel, kind: str) -> dict[str, Tensor]:
    name_of = FORMATS[kind].source_name
    tensors = {}
    for name, leaf in model.state_dict().items():
        if name in ("embedding", "head") and not kind.startswith("implicit_"):
            leaf = leaf[: model.vocab_size]
        tensors[name_of(name)] = leaf.detach().cpu().contiguous()
    return tensors


def _mamba2(config: ModelConfig) -> Table:
    mixer = config.mixer
    assert isinstance(mixer, Mamba2Config)
    return {
        "architectures": ["Mamba2ForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "expand": mixer.expand,
        "num_heads": mixer.expand * config.width // mixer.head_width,
        "head_dim": mixer.head_width,
        "state_size": mixer.state_size,
        "n_groups": mixer.groups,
        "conv_kernel": mixer.conv_width,
        "layer_norm_epsilon": config.norm_eps,
        "use_bias": False,
        "use_conv_bias": True,
        "rms_norm": True,
        "hidden_act": "silu",
        # As its own files write infinity.
        "time_step_limit": [0.0, {"__float__": "Infinity"}],
        "torch_dtype": "float32",
    }


def _llama(config: ModelConfig) -> Table:
    mixer = config.mixer
    assert isinstance(mixer, AttentionConfig)
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": mixer.heads,
        "num_key_value_heads": mixer.kv_heads or mixer.heads,
        "intermediate_size": config.mlp_hidden,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": mixer.theta},
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }


def _reference(config: ModelConfig) -> Table:
    mixer, hidden = config.mixer, config.mlp_hidden
    if isinstance(mixer, Mamba2Config):
        block: Table = {
            "expand": mixer.expand,
            "headdim": mixer.head_width,
            "d_state": mixer.state_size,
            "ngroups": mixer.groups,
            "d_conv": mixer.conv_width,
        }
    else:
        assert isinstance(mixer, AttentionConfig)
        block = {"n_head": mixer.heads, "rope_theta": mixer.theta}
    is_mamba2 = isinstance(mixer, Mamba2Config)
    table = {
        "backbone_type": "explicit" if config.equilibrium is None else "implicit",
        "n_tokens": config.vocab_size,
        "vocab_size": config.vocab_size,
        "pad_vocab": config.vocab_multiple > 1,
        "pad_vocab_size_multiple": config.vocab_multiple,
        "d_embed": config.width,
        "tie_embeddings": config.tie_embeddings,
        "head_bias": False,
        "backbone_config": {
            "block_type": "mamba2" if is_mamba2 else "transformer",
            "block_cfg": block,
            "d_model": config.width,
            # It takes two thirds of this, rounded down.
            "d_inner": math.ceil(1.5 * hidden) if hidden else 0,
            "mlp_type": "llama_mlp",
            "n_layer": config.num_layers,
            "dropout": config.dropout,
            "pre_norm": True,
            "rms_norm": True,
        },
    }
    return table | ({} if config.equilibrium is None else {"deq_params": _deq(config)})


def _deq(config: ModelConfig) -> Table:
    assert config.equilibrium is not None
    solve, gradient = config.equilibrium.solve, config.equilibrium.gradient
    training: Table = {"ift": isinstance(gradient, Implicit)}
    training["grad"] = gradient.steps if isinstance(gradient, Phantom) else 1
    if isinstance(solve.solver, Picard):
        training["tau"] = solve.solver.damping
    return {
        "norm": {"norm_type": "weight_norm" if config.weight_norm else "none"},
        "solver": {
            "f_solver": "fixed_point_iter",
            "f_stop_mode": "rel",
            "f_max_iter": solve.max_steps,
            "f_tol": solve.tolerance,
        },
        "training": training,
    }
