"""Folders of other programs for the tests to read and to damage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from equilm.hf.convert import FORMATS
from equilm.nn.attention import AttentionConfig
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import LanguageModel, ModelConfig

GOLDEN = Path(__file__).parents[1] / "golden"
MAMBA2 = ModelConfig(
    vocab_size=11,
    width=16,
    num_layers=2,
    mixer=Mamba2Config(head_width=8, state_size=4, groups=2),
)
LLAMA = ModelConfig(
    vocab_size=11,
    width=16,
    num_layers=2,
    mixer=AttentionConfig(heads=4, kv_heads=2, theta=10_000.0),
    mlp_hidden=24,
    norm_eps=1e-6,
    tie_embeddings=False,
)
# As versions of `transformers` before 5 wrote them.
FOREIGN: dict[str, tuple[ModelConfig, dict[str, Any]]] = {
    "mamba2": (
        MAMBA2,
        {
            "model_type": "mamba2",
            "vocab_size": 11,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "expand": 2,
            "num_heads": 4,
            "head_dim": 8,
            "state_size": 4,
            "n_groups": 2,
            "conv_kernel": 4,
            "chunk_size": 256,
            "layer_norm_epsilon": 1e-5,
            "norm_before_gate": False,
            "rms_norm": True,
            "time_step_limit": [0.0, float("inf")],
            "tie_word_embeddings": True,
        },
    ),
    "llama": (
        LLAMA,
        {
            "model_type": "llama",
            "vocab_size": 11,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": None,
            "intermediate_size": 24,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10_000.0,
            "rope_scaling": None,
            "tie_word_embeddings": False,
        },
    ),
}


def make(config: ModelConfig) -> LanguageModel:
    return LanguageModel(config, generator=torch.Generator().manual_seed(0))


def same(one: LanguageModel, other: LanguageModel) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return one.config == other.config and all(torch.equal(a, b) for a, b in pairs)


def write_foreign(folder: Path, kind: str) -> Path:
    """Write a Mamba2 or Llama folder as another program would."""
    config, settings = FOREIGN[kind]
    named = {
        FORMATS[kind].source_name(name): leaf for name, leaf in make(config).state_dict().items()
    }
    folder.mkdir()
    save_file(named, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def edit(folder: Path, path: str, value: object) -> None:
    """Set one setting of `config.json`; keys of tables are joined by dots."""
    settings = json.loads((folder / "config.json").read_text())
    *parents, last = path.split(".")
    table = settings
    for parent in parents:
        table = table[parent]
    table[last] = value
    (folder / "config.json").write_text(json.dumps(settings))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def to_pickle(folder: Path) -> Path:
    """Turn the weights into `pytorch_model.bin`, as the reference saves them."""
    path = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), path)
    (folder / "model.safetensors").unlink()
    return path
