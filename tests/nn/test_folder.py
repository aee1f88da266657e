"""Model folders come back as they were saved, are written whole or not at all, and trust nobody."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from equilm.nn.attention import AttentionConfig
from equilm.nn.equilibrium import EquilibriumConfig
from equilm.nn.folder import (
    CheckpointError,
    complete_checkpoints,
    load_model,
    load_weights,
    read_extra,
    save_model,
)
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import LanguageModel, ModelConfig
from equilm.solve.gradient import Implicit

MAMBA2 = ModelConfig(
    vocab_size=11,
    vocab_multiple=4,
    width=16,
    num_layers=2,
    mixer=Mamba2Config(head_width=8, state_size=4, norm_eps=1e-6),
    weight_norm=True,
    equilibrium=EquilibriumConfig(gradient=Implicit()),
)
LLAMA = ModelConfig(
    vocab_size=11,
    width=16,
    num_layers=2,
    mixer=AttentionConfig(heads=4, kv_heads=2),
    mlp_hidden=24,
    tie_embeddings=False,
)


def make(config: ModelConfig = MAMBA2, seed: int = 0) -> LanguageModel:
    return LanguageModel(config, generator=torch.Generator().manual_seed(seed))


def same(one: LanguageModel, other: LanguageModel) -> bool:
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return one.config == other.config and all(
        name == other_name and torch.equal(leaf, other_leaf)
        for (name, leaf), (other_name, other_leaf) in pairs
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a saved model folder."""
    save_model(make(), tmp_path / "model", extra={"notes.txt": b"seven"})
    return tmp_path / "model"


def edit(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    settings = json.loads((folder / "config.json").read_text())
    change(settings)
    (folder / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("config", [MAMBA2, LLAMA], ids=["mamba2", "llama"])
def test_a_model_comes_back_bit_for_bit(config: ModelConfig, tmp_path: Path) -> None:
    model = make(config)
    save_model(model, tmp_path / "deep" / "model")
    loaded = load_model(tmp_path / "deep" / "model", device="cpu")
    assert same(loaded, model)
    assert loaded.config.mixer == config.mixer
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_training_a_loaded_model_leaves_its_folder_alone(folder: Path) -> None:
    loaded = load_model(folder)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1.0)
    assert same(load_model(folder), make())


def test_weights_are_read_into_an_existing_model(folder: Path) -> None:
    model = make(seed=1)
    embedding = model.embedding
    load_weights(model, folder)
    assert model.embedding is embedding
    assert same(model, make())
    other = make(LLAMA)
    with pytest.raises(CheckpointError, match=r"missing .*mlp"):
        load_weights(other, folder)
    assert same(other, make(LLAMA))


def test_an_older_folder_is_replaced_whole(folder: Path) -> None:
    save_model(make(seed=1), folder)
    assert same(load_model(folder), make(seed=1))
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    assert os.listdir(folder.parent) == ["model"]


def test_files_beside_are_kept_checked_or_ignored(folder: Path) -> None:
    assert read_extra(folder, "notes.txt") == b"seven"
    (folder / "stranger.txt").write_text("hello")
    assert same(load_model(folder), make())
    (folder / "notes.txt").write_text("eight")
    with pytest.raises(CheckpointError, match=r"notes.txt: truncated or changed"):
        read_extra(folder, "notes.txt")
    with pytest.raises(CheckpointError, match=r"expected a digest of stranger.txt"):
        read_extra(folder, "stranger.txt")


@pytest.mark.parametrize("name", ["../escape", "config.json", "model.safetensors", "a/b", "", ".."])
def test_files_beside_have_plain_names_of_their_own(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="extra: expected plain names of other files"):
        save_model(make(), tmp_path / "model", extra={name: b""})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_full_disk_leaves_the_old_folder_and_nothing_else(
    failing: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        save_model(make(seed=1), folder)
    assert os.listdir(folder.parent) == ["model"]
    assert same(load_model(folder), make())


def test_a_rename_that_fails_brings_the_old_folder_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".unfinished"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        save_model(make(seed=1), folder)
    assert os.listdir(folder.parent) == ["model"]
    assert same(load_model(folder), make())


def test_a_process_killed_while_writing_leaves_the_old_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What kill -9 leaves: the unfinished sibling, which the next save clears away.
    (folder.parent / ".model.unfinished").mkdir()
    (folder.parent / ".model.unfinished" / "model.safetensors").write_bytes(b"half")
    assert same(load_model(folder), make())
    save_model(make(seed=1), folder)
    assert os.listdir(folder.parent) == ["model"]


def test_a_process_killed_between_the_renames_is_told_where_the_old_folder_is(
    folder: Path,
) -> None:
    folder.rename(folder.with_name(".model.replaced"))
    with pytest.raises(CheckpointError, match=r"cut short; rename .*\.model\.replaced back"):
        load_model(folder)
    save_model(make(seed=1), folder)
    assert os.listdir(folder.parent) == ["model"]


def test_nothing_but_a_model_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("a thesis")
    with pytest.raises(CheckpointError, match=r"no model folder; choose another name"):
        save_model(make(), tmp_path)
    with pytest.raises(CheckpointError, match="no model folder; choose another name"):
        save_model(make(), tmp_path / "precious.txt")
    assert (tmp_path / "precious.txt").read_text() == "a thesis"


@pytest.mark.parametrize("size", [0, 7, 1000, -1])
def test_truncated_weights_are_refused(size: int, folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:size])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated or changed"):
        load_model(folder)


def test_one_flipped_bit_is_refused(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated or changed"):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: no such file"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(version=2), "version: expected 1, got 2"),
        (lambda s: s.update(format="other"), "format: expected 'equilm-model', got 'other'"),
        (lambda s: s.pop("format"), "format: expected 'equilm-model', got None"),
        (lambda s: s.pop("model"), "width: missing"),
        (lambda s: s.pop("sha256"), "expected a digest of model.safetensors, got none"),
        (lambda s: s["model"].update(widht=16), "unknown key; did you mean `width`"),
        (lambda s: s["model"].update(width=32), "expected shape"),
        (lambda s: s["model"].update(width=10), "head_width: expected a divisor .*, got 8"),
        (lambda s: s["model"].update(num_layers=3), "missing core.body.layers.2"),
        (lambda s: s["model"].update(num_layers=1), "unexpected core.body.layers.1.* and 6 more"),
        (lambda s: s["model"].update(tie_embeddings=False), "missing head"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_clear_error(
    change: Callable[[dict[str, object]], object], message: str, folder: Path
) -> None:
    edit(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_a_configuration_that_is_no_table_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")
    with pytest.raises(CheckpointError, match="expected a table, got list"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="no JSON file"):
        load_model(folder)


def test_checkpoints_are_sorted_by_step_and_only_whole_ones_count(tmp_path: Path) -> None:
    for step in (900, 1000, 20):
        save_model(make(), tmp_path / "checkpoints" / f"step-{step}")
    (tmp_path / "checkpoints" / "step-5000").mkdir()
    (tmp_path / "checkpoints" / "step-final").mkdir()
    names = [folder.name for folder in complete_checkpoints(tmp_path)]
    assert names == ["step-20", "step-900", "step-1000"]
    assert complete_checkpoints(tmp_path / "nowhere") == []
