"""Our models as `transformers` folders: names of settings and parameters. Never imports it.

    config.json = {"model_type": "equilm", "width": …, "mixer": {…}, "equilibrium": {…} or null, …}

The rows of the embedding that pad a vocabulary are left out there. Read `configuration.py` and
`convert.py` next.
"""

from dataclasses import fields
from typing import Any

from equilm.config import decode, encode
from equilm.hf.settings import Settings
from equilm.nn.model import ModelConfig

MODEL_TYPE = "equilm"
# Our settings by what the folder calls them; what is left out follows from the others.
KEYS = {
    field.name: "tie_word_embeddings" if field.name == "tie_embeddings" else field.name
    for field in fields(ModelConfig)
    if field.name != "vocab_multiple"
}


def source_name(name: str) -> str:
    """Return the name in such a folder of one of our parameters."""
    whole = {"embedding": "model.embed_tokens.weight", "head": "lm_head.weight"}
    return whole.get(name) or "model." + name


def model_config(settings: Settings, *, has_head: bool) -> ModelConfig:
    """Return the configuration of such a folder.

    Raises:
        CheckpointError: For what this package has not.
        ConfigError: For settings that no model of ours has.
    """
    settings.refuse("quantization_config")
    return from_keys({key: settings.get(key) for key in KEYS.values() if key in settings})


def from_keys(data: dict[str, Any]) -> ModelConfig:
    """Return the configuration of a folder's settings; one left out takes our default.

    Raises:
        ConfigError: For settings that no model of ours has.
    """
    return decode(
        ModelConfig, {ours: data[key] for ours, key in KEYS.items() if key in data}, where="config"
    )


def to_keys(config: ModelConfig) -> dict[str, Any]:
    """Return the folder's settings of a configuration."""
    plain = encode(config)
    return {key: plain[ours] for ours, key in KEYS.items()}
