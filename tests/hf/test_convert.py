"""Every kind of folder is recognised, and whatever is wrong with one is told in one line."""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from equilm.hf.convert import FORMATS, convert, load
from equilm.nn.attention import AttentionConfig
from equilm.nn.folder import CheckpointError, save_model
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import LanguageModel, ModelConfig
from equilm.solve.gradient import Implicit, Phantom

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


@pytest.fixture(params=["mamba2", "llama"])
def reference(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a folder of the reference that a test may damage."""
    return Path(shutil.copytree(GOLDEN / f"implicit_{request.param}", tmp_path / "reference"))


@pytest.fixture
def mamba2_reference(tmp_path: Path) -> Path:
    """Return a Mamba2 folder of the reference that a test may damage."""
    return Path(shutil.copytree(GOLDEN / "implicit_mamba2", tmp_path / "reference"))


# ours


def test_our_own_folder_and_the_newest_checkpoint_of_a_run(tmp_path: Path) -> None:
    first, last = make(MAMBA2), make(LLAMA)
    save_model(first, tmp_path / "checkpoints" / "step-90")
    save_model(last, tmp_path / "checkpoints" / "step-100")
    assert same(load(tmp_path), last)
    assert same(load(tmp_path / "checkpoints" / "step-90"), first)
    assert not load(tmp_path).training


def test_a_folder_of_nothing_we_know_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.config\.json: no such file"):
        load(tmp_path / "nowhere")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match=r"expected a whole checkpoints/step-\*, got none"):
        load(tmp_path)
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


# the reference


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


# pickles


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


# Mamba2 and Llama of Hugging Face; their arithmetic is compared in `test_transformers.py`


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
