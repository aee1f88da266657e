import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from equilm.cli import main
from equilm.cli.data import DATA_COMMANDS
from equilm.data import PrepareConfig, open_folder
from equilm.nn.mamba2 import Mamba2, Mamba2Config
from equilm.nn.mixers import MIXERS
from equilm.tasks.text import TextConfig
from equilm.train.schedule import FixedLengths
from equilm.train.trainer import Trainer
from tests.data.corpus import finish as finish_preparing
from tests.data.corpus import prepared, texts, write
from tests.train.tiny import TINY, curve, finish

Equilm = Callable[..., tuple[int, str, str]]


@pytest.fixture
def equilm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Equilm:
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["equilm", "data", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return (code, *capsys.readouterr())

    return run


def test_prepare_summarises_and_goes_on(tmp_path: Path, equilm: Equilm) -> None:
    documents = texts(40)
    (tmp_path / "e.jsonl").write_bytes(b"")
    words = [write(tmp_path / "d.jsonl.gz", documents), tmp_path / "e.jsonl"]
    words += ["--out", tmp_path / "o", "--workers", 1, "--valid-share", 0.25]
    code, out, err = equilm("prepare", *words, "--piece-megabytes", 0.001)
    assert (code, err) == (0, "")
    splits = open_folder(tmp_path / "o").splits
    assert sum(told["documents"] for told in splits.values()) == 40
    for told in splits.values():
        assert f"{told['tokens']:,}" in out
        assert f"{told['bytes'] / told['tokens']:.2f}" in out
    assert "e.jsonl: no documents" in out
    assert "tokens/s" in out
    code, out, _ = equilm("prepare", *words, "--piece-megabytes", 0.001)
    assert code == 0
    assert "pieces were there" in out


def test_a_share_that_no_document_fell_to_is_told(tmp_path: Path, equilm: Equilm) -> None:
    words = [write(tmp_path / "d.jsonl", texts(2)), "--out", tmp_path / "o", "--workers", 1]
    code, out, _ = equilm("prepare", *words, "--test-share", 0.001)
    assert code == 0
    assert "test: no documents, with test_share at 0.001" in out


def test_check(tmp_path: Path, equilm: Equilm) -> None:
    folder = prepared(tmp_path, texts(40))
    code, out, _ = equilm("check", folder)
    assert code == 0
    assert "shards are as they were written" in out
    path = next(folder.glob("*.bin"))
    path.write_bytes(b"\x01" + path.read_bytes()[1:])
    code, _, err = equilm("check", folder)
    assert code == 2
    assert "expected sha256" in err


@pytest.mark.parametrize("command", ["", *DATA_COMMANDS])
def test_help(equilm: Equilm, command: str) -> None:
    code, out, err = equilm(*([command] if command else []), "--help")
    assert (code, err) == (0, "")
    for noise in ("None", "--no-", "default: ''", "default: )", "MISSING"):
        assert noise not in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["prepaer"], "prepaer: unknown command; did you mean `prepare`?"),
        (["prepare", "none.jsonl", "--out", "o"], "none.jsonl, which matches none"),
        (["prepare", "--out", "o"], "train: expected one source or more, got none"),
        (["check", "nowhere"], "make it with: equilm data prepare"),
    ],
)
def test_a_mistake_is_one_line(equilm: Equilm, words: list[str], told: str) -> None:
    code, _, err = equilm(*words)
    assert code == 2
    assert err.startswith("equilm: ")
    assert told in err
    assert err.count("\n") == 1


def test_a_split_that_is_missing_leaves_the_folder_free(tmp_path: Path) -> None:
    source = write(tmp_path / "d.jsonl", texts(20))
    finish_preparing(PrepareConfig(valid=(source,), out=tmp_path / "tokens"))
    recipe = replace(
        TINY,
        task=TextConfig(sources=(str(tmp_path / "tokens"),)),
        curriculum=FixedLengths(lengths=(24,)),
    )
    with pytest.raises(ValueError, match=r"split: expected one that .* has, got 'train'"):
        Trainer(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_on_text_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = prepared(tmp_path, texts(60))
    task = TextConfig(sources=(str(folder),))
    recipe = replace(
        TINY,
        task=task,
        curriculum=FixedLengths(lengths=(24,)),
        steps=6,
    )
    finish(recipe, tmp_path / "whole")
    whole = curve(tmp_path / "whole")
    for number, _ in enumerate(Trainer(recipe, tmp_path / "cut").run()):
        if number == 3:
            break
    finish(recipe, tmp_path / "cut", resume=True)
    assert curve(tmp_path / "cut") == whole
    through = replace(recipe, task=replace(task, boundaries="carry"))
    finish(through, tmp_path / "carry")
    assert curve(tmp_path / "carry") != whole


def test_a_mixer_without_resets_leaves_no_run_behind(tmp_path: Path) -> None:
    class Through(Mamba2):
        takes_starts = False

    task = TextConfig(sources=(str(prepared(tmp_path, texts(20))),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MIXERS, "mamba2", (Mamba2Config, Through))
        with pytest.raises(ValueError, match=r"train it with task\.boundaries=carry"):
            Trainer(replace(TINY, task=task), tmp_path / "run")
    assert not (tmp_path / "run").exists()
