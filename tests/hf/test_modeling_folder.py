"""Folders of the face: saved, sharded, loaded in any type; settings and initial values."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from equilm.hf.convert import load
from equilm.nn.folder import CheckpointError
from equilm.nn.model import LanguageModel
from equilm.nn.presets import PRESETS
from tests.hf.faces import IMPLICIT, assert_same_weights, config, face, ours, ragged, read
from tests.nn.build import core_of

transformers = pytest.importorskip("transformers")

WIDE = {"A_log", "dt_bias", "D"}


def saved(kind: str, folder: Path, **options: Any) -> Path:
    face(kind).save_pretrained(folder, **options)
    return folder


@torch.no_grad()
def test_a_folder_gives_the_same_model(kind: str, tmp_path: Path) -> None:
    from equilm.hf.configuration import EquilmConfig
    from equilm.hf.modeling import EquilmForCausalLM, EquilmModel

    model = read(saved(kind, tmp_path))
    assert type(model) is EquilmForCausalLM and not model.training
    (tokens,) = ragged(9)
    assert torch.equal(model(tokens).logits, face(kind)(tokens).logits)
    settings = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(settings) is EquilmConfig and settings.model_config() == ours(kind).config
    base = transformers.AutoModel.from_pretrained(tmp_path)
    assert type(base) is EquilmModel
    assert torch.equal(base(tokens).last_hidden_state, model.model(tokens).last_hidden_state)


def test_a_tied_head_is_saved_once_and_stays_tied(kind: str, tmp_path: Path) -> None:
    tied = ours(kind).config.tie_embeddings
    names = load_file(saved(kind, tmp_path) / "model.safetensors").keys()
    assert ("lm_head.weight" in names) == (not tied)
    model = read(tmp_path)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_shards_are_read_back(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path, max_shard_size="1KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same_weights(read(tmp_path), face(kind))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_decay_in_float32(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = read(saved(kind, tmp_path), dtype=dtype)
    for name, parameter in model.named_parameters():
        wide = name.rsplit(".", 1)[1] in WIDE
        assert parameter.dtype == (torch.float32 if wide else dtype), name
    (tokens,) = ragged(9)
    logits, expected = model(tokens).logits, face(kind)(tokens).logits
    assert logits.dtype == dtype
    assert (logits.float() - expected).norm() < 0.05 * expected.norm()
    assert model.generate(tokens, max_new_tokens=4, do_sample=False).shape == (1, 13)
    model.save_pretrained(tmp_path / "again")
    assert_same_weights(read(tmp_path / "again", dtype="auto"), model)


def test_a_device_map_is_honoured(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    for device_map in ("cpu", "auto", {"": "cpu"}):
        assert_same_weights(read(saved(kind, tmp_path), device_map=device_map), face(kind))


@torch.no_grad()
def test_embedding_and_head_may_be_offloaded_but_not_the_core(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    saved(kind, tmp_path)
    (tokens,) = ragged(5)
    for core, others in (("cpu", "disk"), ("disk", "cpu")):
        places = {"model.embed_tokens": others, "model.core": core, "lm_head": others}
        model = read(tmp_path, device_map=places, offload_folder=str(tmp_path / "offloaded"))
        if core == "cpu":
            assert torch.equal(model(tokens).logits, face(kind)(tokens).logits)
        else:
            with pytest.raises(ValueError, match="device_map: expected the core on a device"):
                model(tokens)


def test_what_a_folder_lacks_is_drawn_and_the_rest_kept(kind: str, tmp_path: Path) -> None:
    from equilm.hf.modeling import EquilmForCausalLM

    weights = load_file(saved(kind, tmp_path) / "model.safetensors")
    lost = [name for name in weights if "out_proj" in name or name.endswith(".D")]
    for name in lost[1:]:
        del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, info = EquilmForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == set(lost[1:])
    for name, leaf in model.state_dict().items():
        assert torch.isfinite(leaf).all()
        if name in weights:
            assert torch.equal(leaf, weights[name]), name


def test_new_models_are_drawn_as_ours_are(kind: str) -> None:
    from equilm.hf.modeling import EquilmForCausalLM

    settings = config(kind, width=64)
    torch.manual_seed(0)
    model = EquilmForCausalLM(settings)
    torch.manual_seed(0)
    assert_same_weights(model, EquilmForCausalLM(settings))
    twin = LanguageModel(settings.model_config(), generator=torch.Generator().manual_seed(0))
    drawn = dict(model.model.core.named_parameters())
    for name, expected in twin.core.named_parameters():
        size = expected.abs().mean()
        assert (drawn[name].abs().mean() - size).abs() <= 0.3 * size, name
    for table in (model.lm_head.weight, model.model.embed_tokens.weight):
        assert 0.015 < table.std() < 0.025


def test_dials_may_be_set_where_a_model_is_loaded(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    if kind not in IMPLICIT:
        with pytest.raises(ValueError, match="tolerance: expected none for an explicit model"):
            read(tmp_path, tolerance=0.1)
        assert read(tmp_path).config.tolerance is None
        return
    model = read(tmp_path, tolerance=0.1, max_steps=7, window=4)
    solve = replace(core_of(ours(kind)).solve, tolerance=0.1, max_steps=7, window=4)
    assert model.model.core.solve == solve
    settings = model.config
    assert (settings.tolerance, settings.max_steps, settings.window) == (0.1, 7, 4)
    settings.window = 0
    assert settings.model_config().equilibrium.solve.window is None and settings.window == 0
    with pytest.raises(ValueError, match="max_steps: expected"):
        settings.max_steps = -1


def test_settings_no_model_has_are_refused() -> None:
    from equilm.hf.configuration import EquilmConfig

    for wrong, message in (
        ({"width": "wide"}, "width: expected"),
        ({"mixer": {"kind": "mamba"}}, "kind.*did you mean `mamba2`"),
        ({"equilibrium": {"solve": {"tolerence": 1.0}}}, "did you mean `tolerance`"),
    ):
        with pytest.raises(ValueError, match=message):
            EquilmConfig(**wrong)


def test_other_names_of_sizes() -> None:
    from equilm.hf.configuration import EquilmConfig

    settings = EquilmConfig(hidden_size=64, num_hidden_layers=3, equilibrium={})
    assert (settings.width, settings.num_layers) == (64, 3)
    assert settings.hidden_size == 64 and settings.max_steps == 24
    assert EquilmConfig().model_config() == replace(
        PRESETS["explicit-mamba2-130m"], vocab_multiple=1
    )


def test_what_is_wrong_with_a_folder_is_told(tmp_path: Path) -> None:
    folder = saved("implicit-mamba2", tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    for key, value, message in (
        ("width", 0, "width: expected an integer >= 1, got 0"),
        ("equilibrium", {"solve": {"sweeps": 3}}, "equilibrium.solve.sweeps: unknown key"),
        ("num_layers", 2, r"missing model\.core\.body\.layers\.1"),
        ("quantization_config", {"bits": 4}, "quantization_config: expected none"),
    ):
        (folder / "config.json").write_text(json.dumps({**settings, key: value}))
        with pytest.raises(CheckpointError, match=message):
            load(folder)
