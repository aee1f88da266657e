"""Every command does its work; `test_cli_mistakes.py` has what is wrong in the words of one."""

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from equilm import config, record
from equilm.cli import COMMANDS, main
from equilm.nn.equilibrium import Equilibrium
from equilm.nn.model import LanguageModel, parameter_count
from equilm.tasks import build_task
from equilm.train import trainer
from equilm.train.recipe import Recipe
from equilm.train.trainer import Diverged
from tests.measure.models import small
from tests.train.tiny import EXPLICIT, TINY, curve, finish


class Said(NamedTuple):
    """What a command printed, and how it ended."""

    out: str
    err: str
    code: int


Equilm = Callable[..., Said]


@pytest.fixture
def equilm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Equilm:
    """Return a function that runs the command line in this process."""

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["equilm", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Said(*capsys.readouterr(), code)

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished implicit run and an explicit one."""
    folder = tmp_path_factory.mktemp("runs")
    torch.set_num_threads(1)
    finish(TINY, folder / "implicit")
    finish(replace(TINY, model=EXPLICIT), folder / "explicit")
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of these runs that may be changed."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    config.save(TINY, tmp_path / "tiny.json")
    return tmp_path / "tiny.json"


def is_one_line(said: Said, told: str, code: int = 2) -> None:
    assert re.fullmatch(f"equilm: .*{told}.*\n", said.err), said.err
    assert said.code == code
    # What is wrong with weights is found while they are waited for.
    assert all(line.startswith("evaluating ") for line in said.out.splitlines())


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_worth_reading(command: str, equilm: Equilm) -> None:
    said = equilm(*([command] if command else []), "--help")
    assert (said.code, said.err) == (0, "")
    for noise in ("None", "--no-", "default: ''", "default: )", "MISSING"):
        assert noise not in said.out
    assert all(name in said.out for name in ([] if command else COMMANDS))
    # The list of commands stands in one line, however many there are.
    lines = [line for line in said.out.splitlines() if not line.startswith("usage:")]
    assert max(map(len, lines)) <= 100


def test_a_run_is_trained_and_resumed(equilm: Equilm, recipe: Path, tmp_path: Path) -> None:
    finish(TINY, tmp_path / "unbroken")
    run = tmp_path / "a-folder-with-a-name-that-is-longer-than-a-line-of-eighty-columns-would-hold"
    first = equilm("train", recipe, "--out", run, "--set", "seed=0")
    assert (first.code, first.err) == (0, "")
    opening, *lines = first.out.splitlines()
    assert opening == f"{run}: 3,616 parameters on cpu, steps 0 to 10"
    assert len(lines) == 10
    shutil.rmtree(run / "checkpoints/step-00000010")
    second = equilm("train", "--resume", "--out", run)
    assert second.out.startswith(f"{run}: 3,616 parameters on cpu, steps 9 to 10\n")
    assert curve(run) == curve(tmp_path / "unbroken")


def test_runs_go_below_runs_by_the_recipes_name(
    equilm: Equilm, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert equilm("train", recipe.name, "--set", "steps=1").code == 0
    assert (tmp_path / "runs/tiny/recipe.json").exists()


@pytest.mark.parametrize(
    ("name", "implicit", "millions"),
    [("mamba2-130m", True, 93.1), ("explicit-llama-130m", False, 85.0)],
)
def test_a_model_is_built_by_its_name(
    name: str, implicit: bool, millions: float, equilm: Equilm, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[LanguageModel] = []

    class Stop(RuntimeError):
        pass

    class Unbuilt(trainer.Trainer):
        def __init__(self, recipe: Recipe, folder: Path, **_: bool) -> None:
            assert recipe.steps == 3
            model = recipe.model_for(build_task(recipe.task))
            with torch.device("meta"):
                built.append(LanguageModel(model))
            raise Stop("as far as this test goes")

    monkeypatch.setattr(trainer, "Trainer", Unbuilt)
    is_one_line(equilm("train", "--set", f"model={name}", "--set", "steps=3"), "as far as", 1)
    (model,) = built
    assert isinstance(model.core, Equilibrium) == implicit
    assert model.vocab_size == 60
    assert parameter_count(model) / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_folder_that_holds_a_run(equilm: Equilm, runs: Path, recipe: Path) -> None:
    run = runs / "implicit"
    is_one_line(equilm("train", recipe, "--out", run), "holds a run already; go on with --resume")
    other = equilm("train", recipe, "--out", run, "--resume", "--set", "seed=1")
    is_one_line(other, "was begun with another recipe")


def test_a_truncated_checkpoint(equilm: Equilm, runs: Path) -> None:
    run = runs / "implicit"
    weights = run / "checkpoints/step-00000010/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    told = "model.safetensors: truncated or changed since it was saved"
    older = "; delete .*step-00000010 to resume from .*step-00000009"
    is_one_line(equilm("train", "--resume", "--out", run), told + ".*" + older)
    for command in (["evaluate", run], ["check", run], ["convert", run, runs / "target"]):
        is_one_line(equilm(*command), told)
    assert not (runs / "target").exists()
    assert equilm("evaluate", run / "checkpoints/step-00000009", "--lengths", "3").code == 0


def test_a_full_disk(
    equilm: Equilm, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, made = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal made
        made += 1
        if made > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    said = equilm("train", recipe, "--out", tmp_path / "run")
    one = r"equilm: .*could not be written .*No space left.*the last good one is .*-00000003\n"
    assert re.fullmatch(one, said.err) and said.code == 2
    assert os.listdir(tmp_path / "run/checkpoints") == ["step-00000003"]


@pytest.mark.parametrize(
    ("error", "told", "code"),
    [
        (Diverged("step 3: the gradient was not finite"), "step 3: the gradient was not finite", 1),
        (KeyboardInterrupt(), "interrupted; go on with: equilm train --resume --out {run}", 130),
    ],
)
def test_a_run_that_ends_early_is_one_line(
    error: BaseException,
    told: str,
    code: int,
    equilm: Equilm,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def end(_: object) -> None:
        raise error

    monkeypatch.setattr(trainer.Trainer, "_take_step", end)
    run = recipe.with_name("run")
    said = equilm("train", recipe, "--out", run)
    assert (said.err, said.code) == (f"equilm: {told.format(run=run)}\n", code)


def test_runs_are_evaluated_and_reported(equilm: Equilm, runs: Path) -> None:
    paths = [runs / "implicit", runs / "explicit"]
    numbers = ["--lengths", 3, 8, "--windows", 1, 4, 0, "--batch-size", 2, "--max-steps", 30]
    said = equilm("evaluate", *paths, *numbers)
    assert (said.code, said.err) == (0, "")
    modes = ["implicit, sequential", "implicit, window 4", "implicit, simultaneous", "explicit"]
    assert all(mode in said.out for mode in modes)
    records = record.read([path / "records.jsonl" for path in paths])
    assert {(r.model, r.seed, r.step, r.split, r.device) for r in records} == {
        (name, 0, 10, "test", "cpu") for name in ("implicit", "explicit")
    }
    reported = equilm("report", runs, "--title", "Two runs", "--command", "make demo")
    assert (reported.code, reported.err) == (0, "")
    page = runs / "report/index.html"
    assert reported.out.endswith(f"{page}\n")
    assert all(mode in (runs / "report/tables.md").read_text() for mode in modes)
    assert "Two runs" in page.read_text() and "make demo" in page.read_text()


def test_a_run_is_evaluated_from_inside_under_its_own_name(
    equilm: Equilm, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs / "explicit")
    assert equilm("evaluate", ".", "--lengths", "3").code == 0
    assert {r.model for r in record.read("records.jsonl")} == {"explicit"}


def test_a_checkpoint_is_checked_and_converted(
    equilm: Equilm, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = equilm("convert", runs / "explicit", tmp_path / "target")
    assert said == Said(f"{tmp_path / 'target'}: 2,232 parameters\n", "", 0)
    numbers = ("--length", 4, "--batch-size", 2)
    said = equilm("check", tmp_path / "target", *numbers)
    assert said.code == 0 and said.out.count(" ok ") == 3
    monkeypatch.setattr("equilm.measure.check.ROW_TOLERANCE", -1.0)
    said = equilm("check", tmp_path / "target", *numbers)
    assert said.code == 1 and said.out.count(" FAILS ") == 3
    is_one_line(equilm("check", tmp_path / "target", "--length", "0"), "length: .*>= 3, got 0")


def test_a_benchmark_is_printed_kept_and_drawn(
    equilm: Equilm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("decode_rows", "engine_rows", "planning", "train_rows"):
        monkeypatch.setattr(f"equilm.measure.bench.{module}.config_of", lambda _: small().config)
    monkeypatch.setattr("equilm.measure.bench.decode_rows.REPEATS", 1)
    monkeypatch.setattr("equilm.measure.bench.engine_rows.SWEEPS", 9)
    monkeypatch.setattr("equilm.measure.bench.engine_rows.PROMPTS", 1)
    monkeypatch.setattr("equilm.measure.bench.planning.SHORT", 20)
    monkeypatch.setattr("equilm.measure.bench.train_rows.REPEATS", 1)
    kept = ["--preset", "tiny", "--json", tmp_path / "records.jsonl"]
    said = equilm("bench", "decode", *kept)
    assert said.code == 0 and re.search(r"\n  tiny one sweep 64×1 +\d", said.out)
    assert len({r.batch for r in record.read(tmp_path / "records.jsonl")}) == 2
    said = equilm("bench", "scaling", *kept, "--only", "phantom: tiny 4+1")
    assert said.out.startswith("tiny 4+1 4×32: ")
    assert equilm("report", tmp_path).code == 0
    assert (tmp_path / "report/scaling.png").exists()
    assert "| tiny 4+1 4×32 |" in (tmp_path / "report/tables.md").read_text()


@pytest.mark.multi
def test_a_mistake_outside_this_process_too(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from equilm.cli import main; main()", "report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    is_one_line(Said(done.stdout, done.stderr, done.returncode), "got neither")
