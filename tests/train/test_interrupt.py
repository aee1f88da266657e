"""How a run ends: by one interrupt or two; and what it leaves for those who load it."""

import os
import signal
import sys
from functools import partialmethod
from pathlib import Path

import pytest

from equilm import config
from equilm.cli import main
from equilm.hf.convert import load
from equilm.nn.equilibrium import Equilibrium
from equilm.nn.model import ModelConfig
from equilm.train import trainer
from equilm.train.checkpoint import newest_checkpoint
from tests.train.tiny import TINY, finish, left_behind


def train(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["equilm", "train", *map(str, words)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_an_interrupt_keeps_the_step_and_a_second_one_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.save(TINY, tmp_path / "tiny.json")
    step = trainer.Trainer._take_step

    def interrupted(self: trainer.Trainer, *, times: int) -> object:
        report = step(self)
        if report.step == 4:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        return report

    for times, kept in ((1, "step-00000004"), (2, "step-00000003")):
        run = tmp_path / f"run{times}"
        with monkeypatch.context() as patched:
            patched.setattr(trainer.Trainer, "_take_step", partialmethod(interrupted, times=times))
            code = train(monkeypatch, tmp_path / "tiny.json", "--out", run)
        said = capsys.readouterr()
        assert code == 130
        assert "a checkpoint follows the step (Ctrl-C again: stop at once)" in said.err
        assert said.err.endswith(f"go on with: equilm train --resume --out {run}\n")
        assert ("stopped after step 4" in said.err) == (times == 1)
        newest = newest_checkpoint(run)
        assert newest is not None and newest.name == kept
        assert train(monkeypatch, "--resume", "--out", run) == 0
    assert left_behind(run) == left_behind(tmp_path / "run1")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_leaves_the_solve_of_its_model_not_of_its_last_phase(tmp_path: Path) -> None:
    assert isinstance(TINY.model, ModelConfig) and TINY.model.equilibrium is not None
    finish(TINY, tmp_path)
    core = load(tmp_path).core
    assert isinstance(core, Equilibrium)
    assert core.solve == TINY.model.equilibrium.solve
    last = TINY.phases[-1]
    assert (core.solve.max_steps, core.solve.window) != (last.max_steps, last.window)
