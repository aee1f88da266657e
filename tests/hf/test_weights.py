"""Files of tensors: whole, in shards, broken, and malicious."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch

from equilm.hf.convert import load
from equilm.nn.folder import CheckpointError
from tests.hf.folders import same, to_pickle


def test_pickled_tensors_whole_and_in_shards(reference: Path) -> None:
    model = load(reference)
    path = to_pickle(reference)
    assert same(load(reference), model)
    tensors = torch.load(path, weights_only=True)
    path.unlink()
    names = sorted(tensors)
    places = {name: f"pytorch_model-{index % 2}.bin" for index, name in enumerate(names)}
    for file in set(places.values()):
        torch.save(
            {name: tensors[name] for name in names if places[name] == file}, reference / file
        )
    index = reference / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert same(load(reference), model)
    (reference / "pytorch_model-1.bin").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model-1\.bin: no such file"):
        load(reference)


class Malicious:
    """An object that runs a command when it is unpickled without care."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize(
    "save", [torch.save, lambda data, path: path.write_bytes(pickle.dumps(data))]
)
def test_a_malicious_pickle_is_refused_and_not_run(
    save: Callable[[object, Path], object], reference: Path
) -> None:
    trace = reference / "was-here"
    path = to_pickle(reference)
    save({"word_emb.emb.weight": Malicious(trace)}, path)
    with pytest.raises(
        CheckpointError, match=r"pytorch_model\.bin: broken, or (more than|not writ)"
    ):
        load(reference)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([torch.ones(1)], "expected tensors by name, got list"),
        ({"state_dict": {"a": torch.ones(1)}}, "state_dict: expected a tensor, got dict"),
        ({3: torch.ones(1)}, "3: expected a tensor"),
    ],
)
def test_a_pickle_of_something_else_is_refused(data: object, message: str, reference: Path) -> None:
    torch.save(data, to_pickle(reference))
    with pytest.raises(CheckpointError, match=message):
        load(reference)


@pytest.mark.parametrize("size", [0, 1, 100, 50_000, -1000])
def test_a_broken_pickle_is_refused(size: int, reference: Path) -> None:
    path = to_pickle(reference)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: broken"):
        load(reference)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_noise_instead_of_a_pickle_is_refused(mamba2_reference: Path) -> None:
    path = to_pickle(mamba2_reference)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    program = next(name for name in files if name.endswith("data.pkl"))
    random = Random(0)
    for _ in range(100):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                noise = random.randbytes(random.randrange(80))
                archive.writestr(name, noise if name == program else data)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: broken"):
            load(mamba2_reference)


def test_missing_and_broken_weights_are_named(reference: Path) -> None:
    path = reference / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no whole safetensors file"):
        load(reference)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors or pytorch_model\.bin"):
        load(reference)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "weight_map: expected a table, got None"),
        ({"weight_map": {"a": "../secret.safetensors"}}, "expected plain file names, got '../sec"),
        ({"weight_map": {"a": "gone.safetensors"}}, r"gone\.safetensors: no such file"),
    ],
)
def test_a_wrong_index_is_refused(index: object, message: str, reference: Path) -> None:
    (reference / "model.safetensors").unlink()
    (reference / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        load(reference)
