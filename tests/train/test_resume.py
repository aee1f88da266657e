"""A run that was killed, at any moment and any number of times, ends as one that was not."""

import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from equilm import config, record
from equilm.config import ConfigError
from equilm.nn.folder import CheckpointError, complete_checkpoints
from equilm.train.checkpoint import newest_checkpoint
from equilm.train.schedule import FixedLengths, Phase
from equilm.train.trainer import Trainer
from tests.train.tiny import MODEL, TINY, curve, finish, left_behind

SYSTEM_CALLS = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "open")


class Killed(BaseException):
    """What no handler of ours may catch, like SIGKILL."""


class Mortal:
    """Lets a process make so many calls that change the disk, and then none any more.

    At its death the file just written is cut in half, as if the disk had got no more of it.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left = sys.maxsize
        self.made = 0
        for name in SYSTEM_CALLS:
            patch.setattr(os, name, self._mortal(name, getattr(os, name)))

    def _mortal(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.made += 1
            self.left -= 1
            if self.left == 0 and name == "fsync" and stat.S_ISREG(os.fstat(args[0]).st_mode):
                os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
            if self.left <= 0:
                raise Killed
            return call(*args, **kwargs)

        return wrapped


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> Mortal:
    return Mortal(monkeypatch)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    torch.set_num_threads(1)
    finish(TINY, folder)
    return folder


def alike(folder: Path, unbroken: Path) -> None:
    assert curve(folder) == curve(unbroken)
    assert left_behind(folder) == left_behind(unbroken)


def test_what_an_interruption_must_not_change_does_change(unbroken: Path) -> None:
    """The tests below would prove little on a run in which nothing happens."""
    seen = {
        name: {value for _, other, value in curve(unbroken) if other == name}
        for name in ("loss", "length", "sweeps")
    }
    assert len(seen["loss"]) == TINY.steps
    assert {2.0, 3.0, 5.0} <= seen["length"]
    assert {0.0, 4.0} < seen["sweeps"]


def test_dropout_draws_anew_at_every_step(tmp_path: Path) -> None:
    without = replace(TINY, model=replace(MODEL, dropout=0.0))
    losses = [[r.loss for r in finish(recipe, tmp_path / str(index))]
              for index, recipe in enumerate((TINY, without))]  # fmt: skip
    assert all(left != right for left, right in zip(*losses, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_call_a_run_resumes_bit_for_bit(
    seed: int, mortal: Mortal, unbroken: Path, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    deaths = 0
    while True:
        # Enough calls for a first checkpoint, sometimes; never for the whole run.
        mortal.left = draw.randrange(3, 40)
        try:
            finish(TINY, tmp_path / "run", resume=True)
            break
        except Killed:
            deaths += 1
    mortal.left = sys.maxsize
    assert deaths >= 2
    alike(tmp_path / "run", unbroken)
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == TINY.keep_checkpoints


@pytest.mark.parametrize("step", range(1, TINY.steps))
def test_stopped_after_any_step_a_run_resumes_bit_for_bit(
    step: int, unbroken: Path, tmp_path: Path
) -> None:
    for report in Trainer(TINY, tmp_path).run():
        if report.step == step:
            break
    finish(TINY, tmp_path, resume=True)
    alike(tmp_path, unbroken)


def test_a_finished_run_resumes_to_its_end(unbroken: Path, tmp_path: Path) -> None:
    finish(TINY, tmp_path)
    assert finish(TINY, tmp_path, resume=True) == []
    alike(tmp_path, unbroken)


@pytest.mark.multi
def test_killed_by_the_system_a_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    recipe = replace(TINY, steps=60)
    finish(recipe, tmp_path / "unbroken")
    config.save(recipe, tmp_path / "recipe.json")
    folder = tmp_path / "run"
    line = "from equilm.cli import main; main()"
    arguments = ["train", str(tmp_path / "recipe.json"), "--out", str(folder), "--resume"]
    command = [sys.executable, "-c", line, *arguments]
    draw = random.Random(0)
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as child:
            _wait_for_more(folder / "metrics.jsonl", child)
            time.sleep(draw.random() * 0.05)
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
    assert not (newest_checkpoint(folder) or Path()).name.endswith("60")
    finish(recipe, folder, resume=True)
    alike(folder, tmp_path / "unbroken")


def _wait_for_more(path: Path, child: "subprocess.Popen[bytes]") -> None:
    """Wait until a resumed run has begun to write: the file shrinks, or appears, then grows."""
    first = path.stat().st_size if path.exists() else 0
    for _ in range(6000):
        assert child.poll() is None
        if path.exists() and path.stat().st_size not in (0, first):
            return
        time.sleep(0.005)
    raise AssertionError("the run did not begin")


def test_depth_does_not_depend_on_the_steps_before(tmp_path: Path) -> None:
    # The phase ends when the length falls; what it set must not linger in a run not resumed.
    curriculum = FixedLengths(lengths=(5, 2), shares=(0.0, 0.5))
    phases = (Phase(length=3, max_steps=1, phantom_steps=1),)
    recipe = replace(TINY, steps=8, curriculum=curriculum, phases=phases, checkpoint_every=5)
    sweeps = [report.sweeps for report in finish(recipe, tmp_path / "unbroken")]
    assert sweeps[:4] == [1] * 4 and min(sweeps[4:]) > 1
    for report in Trainer(recipe, tmp_path / "run").run():
        if report.step == 6:
            break
    finish(recipe, tmp_path / "run", resume=True)
    alike(tmp_path / "run", tmp_path / "unbroken")


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """Return a run with checkpoints at steps 3 and 6."""
    for report in Trainer(TINY, tmp_path).run():
        if report.step == 7:
            break
    return tmp_path


def test_a_folder_that_holds_a_run_is_not_begun_again(begun: Path) -> None:
    before = (begun / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=r"holds a run already; go on with --resume"):
        Trainer(TINY, begun)
    (begun / "recipe.json").unlink()
    with pytest.raises(ConfigError, match=r"holds a run already"):
        Trainer(TINY, begun)
    with pytest.raises(ConfigError, match=r"recipe\.json: no such file"):
        Trainer(TINY, begun, resume=True)
    assert (begun / "metrics.jsonl").read_bytes() == before
    assert not (begun / "recipe.json").exists()


def test_another_recipe_does_not_go_on(begun: Path) -> None:
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"begun with another recipe; resume it without naming"):
        Trainer(replace(TINY, seed=1), begun, resume=True)
    assert {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "training.json"])
def test_a_damaged_checkpoint_is_told_with_the_one_before(
    name: str, begun: Path, unbroken: Path
) -> None:
    older, newest = complete_checkpoints(begun)
    data = (newest / name).read_bytes()
    (newest / name).write_bytes(data[: len(data) // 2])
    told = rf"step-00000006.{name}: truncated .*; delete {newest} to resume from {older}$"
    with pytest.raises(CheckpointError, match=told) as caught:
        Trainer(TINY, begun, resume=True)
    assert "\n" not in str(caught.value)
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    finish(TINY, begun, resume=True)
    alike(begun, unbroken)


def test_the_only_checkpoint_damaged_means_a_new_beginning(tmp_path: Path) -> None:
    recipe = replace(TINY, steps=1)
    finish(recipe, tmp_path)
    (tmp_path / "checkpoints/step-00000001/model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"delete .*step-00000001 to begin anew$"):
        Trainer(recipe, tmp_path, resume=True)


def test_metrics_ahead_of_the_checkpoint_are_written_again(begun: Path, unbroken: Path) -> None:
    assert record.read(begun / "metrics.jsonl")[-1].step == 7
    Trainer(TINY, begun, resume=True)
    assert record.read(begun / "metrics.jsonl")[-1].step == 6
    finish(TINY, begun, resume=True)
    alike(begun, unbroken)
