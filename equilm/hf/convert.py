"""Any checkpoint folder we understand becomes a model, or a model folder of ours.

| folder                                  | recognised by                                     |
|-----------------------------------------|---------------------------------------------------|
| a model folder or a run of this package | `format`; `checkpoints/step-*`                    |
| the public reference's, both families   | `model_type`: `implicit_mamba2`, `implicit_llama3` |
| Hugging Face's Mamba2 and Llama         | `model_type`: `mamba2`, `llama`                   |
| our own models saved by `transformers`  | `model_type`: `equilm`                            |

A new format is a row of `FORMATS`. Read `reference.py` and `transformers_folder.py` next.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from equilm.config import suggest
from equilm.hf import face, reference, transformers_folder
from equilm.hf.settings import Settings
from equilm.hf.weights import read_weights
from equilm.nn.folder import (
    CONFIG,
    CheckpointError,
    assemble,
    complete_checkpoints,
    load_model,
    read_json,
    save_model,
)
from equilm.nn.model import LanguageModel, ModelConfig


class ReadConfig(Protocol):
    """Settings of a foreign folder → our configuration."""

    def __call__(self, settings: Settings, *, has_head: bool) -> ModelConfig:
        """Return it; `has_head` tells whether the tensors hold a head of their own."""


@dataclass(frozen=True)
class Format:
    """A foreign format: how to read its settings, and what it calls our parameters."""

    config: ReadConfig
    source_name: Callable[[str], str]


FORMATS = {
    "implicit_mamba2": Format(reference.mamba2_config, reference.source_name),
    "implicit_llama3": Format(reference.llama_config, reference.source_name),
    "mamba2": Format(transformers_folder.mamba2_config, transformers_folder.mamba2_name),
    "llama": Format(transformers_folder.llama_config, transformers_folder.llama_name),
    face.MODEL_TYPE: Format(face.model_config, face.source_name),
}


def load(
    folder: str | os.PathLike[str], *, device: torch.device | str | None = None
) -> LanguageModel:
    """Build the model of any folder in the table above; of a run, its newest whole checkpoint.

    Args:
        folder: What to read; nothing in it is changed or executed.
        device: Where to put the parameters; `None` means the CPU.

    Returns:
        The model in evaluation mode. Foreign weights in half precision are widened to float32.

    Raises:
        CheckpointError: One line that names the file and what in it is missing, unexpected,
            mis-shaped, broken or beyond this package.
    """
    folder = Path(folder)
    # A run writes its recipe when it begins, and its first checkpoint later.
    is_run = any((folder / name).exists() for name in ("checkpoints", "recipe.json"))
    if is_run and not (folder / CONFIG).exists():
        checkpoints = complete_checkpoints(folder)
        if not checkpoints:
            raise CheckpointError(f"{folder}: expected a whole checkpoints/step-*, got none")
        folder = checkpoints[-1]
    if not (folder / CONFIG).exists():
        raise CheckpointError(f"{folder}: expected a run or a model folder, with {CONFIG} in it")
    settings = read_json(folder / CONFIG)
    if "format" in settings or "model_type" not in settings:
        return load_model(folder, device=device)
    model = _load_foreign(folder, Settings(settings, str(folder / CONFIG)))
    return model.eval().to(device=device)


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write what `load` makes of `source` as a model folder.

    Raises:
        CheckpointError: As `load`; also if `target` is there and is no model folder.
        OSError: If it could not be written; what was there is as it was.
    """
    save_model(load(source), target)


def _load_foreign(folder: Path, settings: Settings) -> LanguageModel:
    kind = settings.get("model_type")
    if kind not in FORMATS:
        raise settings.error("model_type", f"unknown: {kind!r}; {suggest(str(kind), FORMATS)}")
    form = FORMATS[kind]
    tensors = {name: _widened(leaf) for name, leaf in read_weights(folder).items()}
    head = form.source_name("head")
    try:
        config = form.config(settings, has_head=head in tensors)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{settings.where}: {error}") from None
    # Buffers that follow from the settings; older versions saved them.
    tensors = {k: v for k, v in tensors.items() if not k.endswith("rotary_emb.inv_freq")}
    if config.tie_embeddings and head in tensors:
        embedding = form.source_name("embedding")
        if embedding in tensors and not torch.equal(tensors[head], tensors[embedding]):
            raise CheckpointError(f"{folder}: {head}: expected to equal {embedding}, being tied")
        del tensors[head]
    return assemble(config, tensors, where=str(folder), source_name=form.source_name)


def _widened(leaf: Tensor) -> Tensor:
    return leaf.float() if leaf.is_floating_point() and leaf.dtype.itemsize < 4 else leaf
