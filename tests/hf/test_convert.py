"""Folders of ours and of Hugging Face are recognised; what is wrong with one is told in one line.

The arithmetic of Mamba2 and Llama folders is compared in `test_transformers.py`.
"""

import shutil
from pathlib import Path

import pytest
import torch

from equilm.hf.convert import convert, load
from equilm.nn.folder import CheckpointError, save_model
from tests.hf.folders import FOREIGN, LLAMA, MAMBA2, change_tensors, edit, make, same, write_foreign


def test_our_own_folder_and_the_newest_checkpoint_of_a_run(tmp_path: Path) -> None:
    first, last = make(MAMBA2), make(LLAMA)
    save_model(first, tmp_path / "checkpoints" / "step-90")
    save_model(last, tmp_path / "checkpoints" / "step-100")
    assert same(load(tmp_path), last)
    assert same(load(tmp_path / "checkpoints" / "step-90"), first)
    assert not load(tmp_path).training


@pytest.mark.parametrize("begun", ["checkpoints", "recipe.json"])
def test_a_run_without_a_checkpoint_is_told_so(begun: str, tmp_path: Path) -> None:
    (tmp_path / begun).mkdir()
    with pytest.raises(CheckpointError, match=r"expected a whole checkpoints/step-\*, got none"):
        load(tmp_path)


def test_a_folder_of_nothing_we_know_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: expected a run or a model folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"colour": "red"}')
    with pytest.raises(CheckpointError, match="format: expected 'equilm-model', got None"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(CheckpointError, match="model_type: unknown: 'mamba'; did you mean `mamba2"):
        load(tmp_path)


def test_convert_writes_a_folder_that_needs_its_source_no_more(reference: Path) -> None:
    model = load(reference)
    target = reference.parent / "target"
    convert(reference, target)
    shutil.rmtree(reference)
    assert same(load(target), model)


def test_convert_never_overwrites_its_source(reference: Path) -> None:
    with pytest.raises(CheckpointError, match="format: expected 'equilm-model'"):
        convert(reference, reference)
    load(reference)


@pytest.mark.parametrize("kind", FOREIGN)
def test_older_folders_of_hugging_face(kind: str, tmp_path: Path) -> None:
    config, _ = FOREIGN[kind]
    assert same(load(write_foreign(tmp_path / kind, kind)), make(config))


def test_buffers_that_follow_from_the_settings_are_let_pass(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "llama", "llama")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(2)}))
    assert same(load(folder), make(LLAMA))


def test_a_head_decides_where_the_settings_are_silent_on_tying(tmp_path: Path) -> None:
    for kind in FOREIGN:
        folder = write_foreign(tmp_path / kind, kind)
        edit(folder, "tie_word_embeddings", None)
        assert same(load(folder), make(FOREIGN[kind][0]))


def test_half_precision_is_widened(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "mamba2", "mamba2")
    change_tensors(folder, lambda t: t.update({name: leaf.half() for name, leaf in t.items()}))
    assert {parameter.dtype for parameter in load(folder).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        ("mamba2", "use_bias", True, "use_bias: expected false, got true"),
        ("mamba2", "use_conv_bias", False, "use_conv_bias: expected true, got false"),
        ("mamba2", "norm_before_gate", True, "norm_before_gate: expected false, got true"),
        ("mamba2", "rms_norm", False, "rms_norm: expected true, got false"),
        ("mamba2", "hidden_act", "gelu", "hidden_act: expected 'silu' or 'swish', got 'gelu'"),
        ("mamba2", "time_step_limit", [0.0, 0.1], r"time_step_limit: .*, got \[0\.0, 0\.1\]"),
        ("mamba2", "num_heads", 8, "num_heads: expected 4, got 8"),
        ("mamba2", "head_dim", 0, "num_heads: expected 32, got 4"),
        ("mamba2", "expand", 2.5, "expand: expected an integer >= 0, got 2.5"),
        ("mamba2", "quantization_config", {"bits": 4}, "quantization_config: expected none, got"),
        ("llama", "attention_bias", True, "attention_bias: expected false, got true"),
        ("llama", "mlp_bias", True, "mlp_bias: expected false, got true"),
        ("llama", "hidden_act", "gelu", "hidden_act: expected 'silu' or 'swish', got 'gelu'"),
        ("llama", "head_dim", 8, "head_dim: expected 4, got 8"),
        ("llama", "num_attention_heads", 0, "heads: expected an integer >= 1, got 0"),
        ("llama", "rope_scaling", {"factor": 2.0}, "rope_scaling: expected none, got {'factor'"),
        (
            "llama",
            "rope_parameters",
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            "rope_parameters: rope_type: expected 'default', got 'linear'",
        ),
        ("llama", "tie_word_embeddings", True, "lm_head.weight: expected to equal model.embed_tok"),
        ("llama", "tie_word_embeddings", "yes", "tie_word_embeddings: expected true or false"),
        ("llama", "num_hidden_layers", 3, r"missing model\.layers\.2\.input_layernorm\.weight"),
        ("llama", "rms_norm_eps", 0.0, "norm_eps: expected a number > 0, got 0.0"),
    ],
)
def test_settings_of_hugging_face_that_we_cannot_honour_are_named(
    kind: str, key: str, value: object, message: str, tmp_path: Path
) -> None:
    folder = write_foreign(tmp_path / kind, kind)
    edit(folder, key, value)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_bias_we_cannot_hold_is_named(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path / "llama", "llama")
    name = "model.layers.1.self_attn.q_proj.bias"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(16)}))
    with pytest.raises(CheckpointError, match=f"unexpected {name}$"):
        load(folder)
