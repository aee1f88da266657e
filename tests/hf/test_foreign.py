"""Folders of other programs are written as they read them; what they cannot say is refused."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from equilm.cli import main
from equilm.hf.convert import load
from equilm.hf.foreign import write_foreign as write
from equilm.nn.attention import AttentionConfig
from equilm.nn.equilibrium import EquilibriumConfig
from equilm.nn.folder import CheckpointError, save_model
from equilm.nn.model import ModelConfig
from equilm.solve import Anderson, Implicit, Phantom, Picard, Solve
from tests.hf.folders import FOREIGN, LLAMA, MAMBA2, make, same, write_foreign

# Every head has keys of its own there, and the width of an MLP is two thirds of something.
REFERENCE_LLAMA = replace(LLAMA, mixer=AttentionConfig(heads=4), norm_eps=1e-5, mlp_hidden=25)


@pytest.mark.parametrize("kind", FOREIGN)
def test_theirs_to_ours_to_theirs_is_bit_for_bit(kind: str, tmp_path: Path) -> None:
    first = write_foreign(tmp_path / "first", kind)
    write(first, tmp_path / "again", kind)
    assert same(load(tmp_path / "again"), load(first))
    before, after = (
        load_file(tmp_path / name / "model.safetensors") for name in ("first", "again")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_reference_folder_round_trips(reference: Path) -> None:
    model = load(reference)
    write(reference, reference.parent / "again", "reference")
    assert same(load(reference.parent / "again"), model)


@pytest.mark.parametrize("explicit", [MAMBA2, REFERENCE_LLAMA])
@pytest.mark.parametrize("equilibrium", [None, Phantom(steps=2, damping=0.7), Implicit()])
def test_ours_to_the_reference_and_back(
    explicit: ModelConfig, equilibrium: Phantom | Implicit | None, tmp_path: Path
) -> None:
    config = replace(explicit, vocab_multiple=8)
    if equilibrium is not None:
        solve = Solve(solver=Picard(damping=0.7), tolerance=0.01, max_steps=9)
        settings = EquilibriumConfig(solve=solve, gradient=equilibrium)
        config = replace(config, weight_norm=True, equilibrium=settings)
    save_model(make(config), tmp_path / "ours")
    write(tmp_path / "ours", tmp_path / "theirs", "reference")
    assert same(load(tmp_path / "theirs"), make(config))


@pytest.mark.parametrize("kind", FOREIGN)
@torch.no_grad()
def test_the_library_reads_them(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = replace(FOREIGN[kind][0], vocab_multiple=8)
    model = make(config).eval()
    save_model(model, tmp_path / "ours")
    write(tmp_path / "ours", tmp_path / "theirs", kind)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    tokens_BT = torch.randint(0, 11, (2, 17))
    expected = model(tokens_BT)[0]
    assert torch.allclose(theirs(tokens_BT).logits, expected, atol=1e-5)
    theirs.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert torch.equal(again.embedding, model.embedding[:11])


@pytest.mark.parametrize(
    ("config", "to", "told"),
    [
        (MAMBA2, "llama", "mixer: llama folders have no mamba2"),
        (LLAMA, "mamba2", "mixer: mamba2 folders have no attention"),
        (replace(MAMBA2, weight_norm=True), "mamba2", "weight_norm: mamba2 folders cannot hold"),
        (replace(MAMBA2, mlp_hidden=8), "mamba2", "mlp_hidden: mamba2 folders cannot hold 8"),
        (replace(MAMBA2, norm_eps=1e-3), "mamba2", "mixer: mamba2 folders cannot hold"),
        (LLAMA, "reference", "mixer: implicit_llama3 folders cannot hold"),
        (
            replace(LLAMA, equilibrium=EquilibriumConfig()),
            "llama",
            "equilibrium: llama folders cannot hold",
        ),
        (
            replace(MAMBA2, equilibrium=EquilibriumConfig(solve=Solve(solver=Anderson()))),
            "reference",
            "equilibrium: implicit_mamba2 folders cannot hold",
        ),
    ],
)
def test_what_a_format_cannot_say_is_refused(
    config: ModelConfig, to: str, told: str, tmp_path: Path
) -> None:
    save_model(make(config), tmp_path / "ours")
    with pytest.raises(ValueError, match=told):
        write(tmp_path / "ours", tmp_path / "theirs", to)
    assert not (tmp_path / "theirs").exists()


def test_the_command_line_writes_them_and_overwrites_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(make(MAMBA2), tmp_path / "ours")
    command = ["equilm", "convert", str(tmp_path / "ours"), str(tmp_path / "theirs")]
    monkeypatch.setattr(sys, "argv", [*command, "--to", "mamba2"])
    main()
    assert capsys.readouterr().out.endswith("parameters\n")
    assert same(load(tmp_path / "theirs"), make(MAMBA2))
    with pytest.raises(CheckpointError, match="is there and is no mamba2 folder"):
        write(tmp_path / "ours", tmp_path / "ours", "mamba2")
