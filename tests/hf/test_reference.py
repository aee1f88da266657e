"""Folders of the public reference: every variant is read, and what we cannot honour is named.

Its arithmetic is compared in `test_golden.py`.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from equilm.hf.convert import FORMATS, load
from equilm.nn.folder import CheckpointError
from equilm.solve.gradient import Implicit, Phantom
from tests.hf.folders import GOLDEN, change_tensors, edit, make, same


def test_implicit_and_pretrained_differ_in_the_solve_alone(mamba2_reference: Path) -> None:
    implicit = load(mamba2_reference).config
    assert implicit.equilibrium is not None
    assert implicit.equilibrium.solve.max_steps == 24
    assert implicit.equilibrium.solve.tolerance == 0.05
    assert implicit.equilibrium.gradient == Phantom(steps=4, damping=0.8)
    assert implicit.weight_norm
    edit(mamba2_reference, "deq_params.solver.f_max_iter", 4)
    edit(mamba2_reference, "deq_params.training.grad", 1)
    pretrained = load(mamba2_reference).config
    assert pretrained.equilibrium is not None
    assert pretrained.equilibrium.solve.max_steps == 4
    assert pretrained.equilibrium.gradient == Phantom(steps=1, damping=0.8)
    assert replace(pretrained, equilibrium=implicit.equilibrium) == implicit
    edit(mamba2_reference, "deq_params.training.ift", True)
    exact = load(mamba2_reference).config.equilibrium
    assert exact is not None
    assert exact.gradient == Implicit()


@pytest.mark.parametrize("tied", [True, False])
def test_an_explicit_folder(tied: bool, reference: Path) -> None:
    settings = json.loads((reference / "config.json").read_text())
    settings["backbone_config"].pop("pretrain_iter")
    settings |= {"backbone_type": "explicit", "deq_params": {}, "tie_embeddings": tied}
    (reference / "config.json").write_text(json.dumps(settings))
    implicit = load(GOLDEN / f"implicit_{reference_family(settings)}").config
    config = replace(implicit, equilibrium=None, weight_norm=False, tie_embeddings=tied)
    model = make(config)
    names = FORMATS[settings["model_type"]].source_name
    tensors = {names(name): leaf for name, leaf in model.state_dict().items()}
    assert "backbone.layers.2.norm.weight" in tensors
    save_file(tensors, reference / "model.safetensors")
    assert same(load(reference), model)


def reference_family(settings: dict[str, Any]) -> str:
    return {"implicit_mamba2": "mamba2", "implicit_llama3": "llama"}[settings["model_type"]]


def test_plain_weights_may_be_iterated_too(mamba2_reference: Path) -> None:
    def fold(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("weight_v")]:
            v, g = tensors.pop(name), tensors.pop(name[:-1] + "g")
            tensors[name[:-2]] = v * g / v.flatten(1).norm(dim=1).view(g.shape)

    tokens_BT = torch.randint(96, (2, 9))
    with torch.no_grad():
        expected_BTV, _ = load(mamba2_reference)(tokens_BT)
        change_tensors(mamba2_reference, fold)
        edit(mamba2_reference, "deq_params.norm.norm_type", "none")
        folded = load(mamba2_reference)
        assert not folded.config.weight_norm
        assert torch.allclose(folded(tokens_BT)[0], expected_BTV, rtol=1e-4, atol=1e-5)


def test_the_copy_of_a_tied_head_is_optional_but_must_be_a_copy(reference: Path) -> None:
    model = load(reference)
    change_tensors(reference, lambda tensors: tensors.pop("criterion.decoder.weight"))
    assert same(load(reference), model)
    shape = model.embedding.shape
    change_tensors(reference, lambda t: t.update({"criterion.decoder.weight": torch.ones(shape)}))
    with pytest.raises(
        CheckpointError,
        match=r"criterion\.decoder\.weight: expected to equal word_emb\.emb\.weight",
    ):
        load(reference)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("n_tokens", None, "n_tokens: expected an integer >= 0, got none"),
        ("n_tokens", "96", "n_tokens: expected an integer >= 0, got '96'"),
        ("n_tokens", 0, "vocab_size: expected an integer >= 1, got 0"),
        ("d_embed", 32, "d_embed: expected 64, got 32"),
        ("head_bias", True, "head_bias: expected false, got true"),
        ("pad_vocab", 1, "pad_vocab: expected true or false, got 1"),
        ("backbone_type", "hybrid", "backbone_type: expected 'implicit' or 'explicit', got 'hyb"),
        ("backbone_config", None, "backbone_config: expected a table, got none"),
        ("backbone_config.pre_norm", False, "backbone_config: pre_norm: expected true, got false"),
        ("backbone_config.rms_norm", False, "rms_norm: expected true, got false"),
        ("backbone_config.norm_epsilon", 1e-6, "norm_epsilon: expected 1e-05, got 1e-06"),
        ("backbone_config.init_z_mode", "input", "init_z_mode: expected none, got 'input'"),
        ("backbone_config.ema_alpha", 0.1, "ema_alpha: expected none, got 0.1"),
        ("backbone_config.d_inner", 96, "mlp_type: expected 'llama_mlp', got 'gated_mlp'"),
        ("backbone_config.block_type", "mamba", "block_type: expected 'mamba2' or 'transformer'"),
        ("backbone_config.n_layers", 3, "n_layers: unknown key; did you mean `n_layer`"),
        ("backbone_config.dropout", "high", "dropout: expected a finite number, got 'high'"),
        ("backbone_config.block_cfg.bias", True, "block_cfg: bias: expected false, got true"),
        ("backbone_config.block_cfg.d_ssm", 64, "d_ssm: expected none, got 64"),
        ("backbone_config.block_cfg.norm_before_gate", True, "norm_before_gate: expected false"),
        ("backbone_config.block_cfg.dt_limit", [0.0, 1.0], "dt_limit: expected .0.0, inf., got"),
        ("backbone_config.block_cfg.head_dim", 16, "head_dim: unknown key; did you mean `headdim`"),
        ("backbone_config.block_cfg.headdim", 48, "head_width: expected a divisor .* got 48"),
        ("deq_params.norm.norm_type", "spectral_norm", "norm_type: expected 'weight_norm' or 'non"),
        ("deq_params.norm.norm_clip", True, "norm_clip: expected false, got true"),
        ("deq_params.solver.f_solver", "broyden", "f_solver: expected 'fixed_point_iter', got"),
        ("deq_params.solver.f_stop_mode", "abs", "f_stop_mode: expected 'rel', got 'abs'"),
        ("deq_params.solver.f_tol", -1.0, "tolerance: expected a number >= 0, got -1.0"),
        ("deq_params.training.tau", 1.5, "damping: expected a number in"),
    ],
)
def test_settings_of_the_reference_that_we_cannot_honour_are_named(
    path: str, value: object, message: str, mamba2_reference: Path
) -> None:
    edit(mamba2_reference, path, value)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(mamba2_reference)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(mamba2_reference))


def test_keys_of_the_reference_are_named_as_it_names_them(reference: Path) -> None:
    change_tensors(reference, lambda tensors: tensors.pop("backbone.norm_f.weight"))
    with pytest.raises(CheckpointError, match=r"missing backbone\.norm_f\.weight$"):
        load(reference)
    change_tensors(reference, lambda t: t.update({"backbone.norm_f.weight": torch.ones(63)}))
    with pytest.raises(
        CheckpointError, match=r"backbone\.norm_f\.weight: expected shape \(64,\), got \(63,\)"
    ):
        load(reference)
    change_tensors(
        reference,
        lambda t: t.update(
            {"backbone.norm_f.weight": torch.ones(64, dtype=torch.int32), "extra": torch.ones(1)}
        ),
    )
    with pytest.raises(
        CheckpointError,
        match=r"unexpected extra; backbone\.norm_f\.weight: expected floating-.* torch\.int32",
    ):
        load(reference)
