"""Tensors of a checkpoint folder: one file or several, safetensors or pickled tensors.

A pickle is read as tensors and nothing else (`weights_only`); no other object in it is ever made.
"""

import pickle
import struct
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from equilm.nn.folder import CheckpointError, read_json, read_safetensors

NAMES = ("model.safetensors", "pytorch_model.bin")
# All that reading a malformed pickle was seen to raise, and their kin.
BROKEN = (
    pickle.UnpicklingError,
    struct.error,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read every tensor of the folder, on the CPU; safetensors where there are both.

    Raises:
        CheckpointError: If there is no such file, if one is broken or holds more than tensors.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return _read_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index)
    raise CheckpointError(f"{folder}: expected {' or '.join(NAMES)}, whole or with an index")


def _read_shards(index: Path) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise CheckpointError(f"{index}: weight_map: expected a table, got {places!r}")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(map(str, places.values()))):
        if Path(name).name != name:
            raise CheckpointError(f"{index}: weight_map: expected plain file names, got {name!r}")
        tensors |= _read_file(index.with_name(name))
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    return read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_pickle(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: broken, or not written by torch.save since version 1.6")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except BROKEN as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path}: broken, or more than plain tensors ({reason})") from None
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{path}: expected tensors by name, got {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: {name}: expected a tensor, got {type(tensor).__name__}")
    return tensors
