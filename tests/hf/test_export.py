"""From our folders to those of the library and back, also on the command line."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from equilm.cli import main
from equilm.hf.convert import convert, load
from equilm.hf.export import export
from equilm.nn.folder import CheckpointError, save_model
from equilm.nn.model import LanguageModel
from tests.hf.faces import assert_same_weights, face, ours, ragged, read
from tests.hf.folders import same
from tests.nn.build import VOCAB
from tests.tolerance import assert_close

pytest.importorskip("transformers")


def test_from_ours_and_back(kind: str, tmp_path: Path) -> None:
    save_model(ours(kind), tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "theirs")
    assert_same_weights(read(tmp_path / "theirs"), face(kind))
    convert(tmp_path / "theirs", tmp_path / "back")
    assert same(load(tmp_path / "back"), ours(kind))


@torch.no_grad()
def test_rows_that_pad_the_vocabulary_are_left_out(kind: str, tmp_path: Path) -> None:
    model = LanguageModel(
        replace(ours(kind).config, vocab_multiple=16), generator=torch.Generator().manual_seed(0)
    ).eval()
    save_model(model, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "theirs")
    assert read(tmp_path / "theirs").lm_head.weight.shape[0] == VOCAB
    (tokens,) = ragged(9)
    for again in (load(tmp_path / "theirs"), load(tmp_path / "ours")):
        assert_close("row", again(tokens)[0], model(tokens)[0])


def test_export_overwrites_nothing_but_its_own(tmp_path: Path) -> None:
    save_model(ours("mamba2"), tmp_path / "ours")
    with pytest.raises(CheckpointError, match="is there and is no folder of an equilm model"):
        export(tmp_path / "ours", tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "theirs")
    (tmp_path / "theirs" / "tokenizer.json").write_text("{}")
    export(tmp_path / "ours", tmp_path / "theirs")
    assert (tmp_path / "theirs" / "tokenizer.json").exists()


def test_the_command_line_goes_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(ours("implicit-mamba2"), tmp_path / "ours")
    for source, target, to in (("ours", "theirs", "transformers"), ("theirs", "back", "equilm")):
        places = [str(tmp_path / source), str(tmp_path / target)]
        monkeypatch.setattr(sys, "argv", ["equilm", "convert", *places, "--to", to])
        main()
        assert capsys.readouterr().out.endswith("parameters\n")
    assert same(load(tmp_path / "back"), ours("implicit-mamba2"))


def test_without_the_library_its_absence_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(ours("mamba2"), tmp_path / "ours")
    monkeypatch.setattr("equilm.hf.export.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="transformers: expected it installed"):
        export(tmp_path / "ours", tmp_path / "theirs")
