"""A model folder whose weights lie in pieces: `config.json`, and `shards/*.safetensors`.

    config.json = {"format": "equilm-shards", "version": 1, "model": {…}, "sha256": {file: digest}}

Each file holds pieces of tensors and where they belong, in the form of PyTorch's distributed
checkpoints, so that any number of processes reads what any other number wrote. Names of weights
begin with `model/`. `equilm/train/sharded.py` writes them. Read `folder.py` next.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

FORMAT, SHARDS, MODEL = "equilm-shards", "shards", "model/"


class ShardsError(ValueError):
    """Pieces that are missing, cut short or do not fit."""


def sizes(folder: Path) -> dict[str, torch.Size]:
    """Return the whole shape of every tensor of a folder of shards.

    Raises:
        ShardsError: If a file is broken, or pieces are missing.
    """
    return {name: size for name, (size, _) in _contents(folder).items()}


def read_model(folder: Path) -> dict[str, Tensor]:
    """Return the weights, whole, on the CPU.

    Raises:
        ShardsError: If a file is broken, or pieces are missing.
    """
    found = {
        name: torch.empty(size, dtype=dtype)
        for name, (size, dtype) in _contents(folder).items()
        if name.startswith(MODEL)
    }
    fill(found, folder, alone=True)
    return {name.removeprefix(MODEL): leaf for name, leaf in found.items()}


def fill(tensors: Mapping[str, Tensor], folder: Path, *, alone: bool) -> None:
    """Overwrite tensors, each whole or spread over ranks, with those of their names.

    Args:
        tensors: By their names in the folder; those on other ranks have the same names.
        folder: With `shards` in it.
        alone: Whether this process reads by itself; else all ranks call this.

    Raises:
        ShardsError: If a name is missing, a shape another, or a file broken.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    found = sizes(folder)
    for name, leaf in tensors.items():
        if found.get(name) != leaf.shape:
            got = tuple(found[name]) if name in found else "nothing"
            raise ShardsError(f"{folder}: {name}: expected shape {tuple(leaf.shape)}, got {got}")
    try:
        with warnings.catch_warnings():
            # It warns of what `no_dist` asks for.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(dict(tensors), storage_reader=_reader(folder), no_dist=alone)
    except (CheckpointException, SafetensorError, AssertionError, OSError) as error:
        raise ShardsError(f"{folder / SHARDS}: could not be read ({_first_line(error)})") from None


def _contents(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    try:
        metadata = _reader(folder).read_metadata().state_dict_metadata
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ShardsError(f"{folder / SHARDS}: {_first_line(error)}") from None
    found = {}
    for name, about in metadata.items():
        assert isinstance(about, TensorStorageMetadata)
        if sum(chunk.sizes.numel() for chunk in about.chunks) != about.size.numel():
            raise ShardsError(f"{folder / SHARDS}: {name}: pieces are missing")
        found[name] = about.size, about.properties.dtype
    return found


def _reader(folder: Path) -> "HuggingFaceStorageReader":
    # Imported on use, because it takes longer than all the rest of this package.
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    return HuggingFaceStorageReader(str(folder / SHARDS))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
