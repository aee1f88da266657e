"""The loop does what its reports say, skips what is not finite, and fails without harm."""

import errno
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from equilm import record
from equilm.config import ConfigError
from equilm.nn.folder import CheckpointError, complete_checkpoints
from equilm.nn.model import LanguageModel
from equilm.record import Record
from equilm.tasks import build_task
from equilm.train import schedule, trainer
from equilm.train.optim import OptimConfig, clip_gradients
from equilm.train.recipe import Recipe
from equilm.train.schedule import AdaptiveLengths, FixedLengths, RateSchedule
from equilm.train.trainer import Diverged, Trainer
from tests.train.tiny import EXPLICIT, TINY, curve, finish, left_behind

PLAIN = replace(TINY, model=EXPLICIT, steps=4, curriculum=FixedLengths(lengths=(5,)))
Clip = Callable[[nn.Module, float], torch.Tensor]


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def never_finite(model: nn.Module, max_norm: float) -> torch.Tensor:
    return torch.tensor(math.nan)


@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_the_first_step_is_what_its_report_says(spread: float, tmp_path: Path) -> None:
    config = replace(EXPLICIT, vocab_size=6)
    model = LanguageModel(config, generator=torch.Generator().manual_seed(PLAIN.seed))
    tokens_BT, targets_BT = build_task(PLAIN.task).batch(
        split="train", length=5, batch_size=4, seed=PLAIN.seed, index=0
    )
    logits_BTV, _ = model(tokens_BT)
    losses = [
        -logits_BTV[row, token].log_softmax(-1)[targets_BT[row, token]]
        for row in range(4)
        for token in range(5)
    ]
    loss = torch.stack(losses).mean()
    uniform = -logits_BTV.log_softmax(-1).mean()
    (loss + spread * (uniform - loss)).backward()
    squares = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
    report = next(Trainer(replace(PLAIN, label_smoothing=spread), tmp_path).run())
    assert report.loss == pytest.approx(loss.item(), rel=1e-5)
    assert report.grad_norm == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)
    right = (logits_BTV.argmax(-1) == targets_BT).sum().item()
    assert report.accuracy == pytest.approx(right / 20)
    assert (report.step, report.length, report.sweeps) == (1, 5, 0)


def test_batches_are_those_of_the_training_split_in_order(tmp_path: Path) -> None:
    run = Trainer(PLAIN, tmp_path)
    seen: list[dict[str, object]] = []
    inner = run.task.batch

    def batch(**where: object) -> object:
        seen.append(where)
        return inner(**where)  # type: ignore[arg-type]

    run.task.batch = batch  # type: ignore[assignment, method-assign]
    list(run.run())
    about = {"split": "train", "length": 5, "batch_size": 4, "seed": 0}
    assert seen == [{**about, "index": index} for index in range(4)]


def test_training_learns(tmp_path: Path) -> None:
    recipe = replace(
        PLAIN,
        steps=60,
        batch_size=32,
        curriculum=FixedLengths(lengths=(2,)),
        optim=OptimConfig(rate=1e-2, clip=1.0, schedule=RateSchedule(warmup=0.0)),
        checkpoint_every=100,
    )
    losses = [report.loss for report in finish(recipe, tmp_path)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_lines_come_every_so_often_and_at_the_end(tmp_path: Path) -> None:
    finish(replace(TINY, log_every=4), tmp_path)
    lines = record.read(tmp_path / "metrics.jsonl")
    assert [line.step for line in lines if line.name == "loss"] == [4, 8, 10]
    assert [line.name for line in lines[-2:]] == ["parameters", "seconds"]
    assert {(line.model, line.task, line.seed) for line in lines} == {
        (tmp_path.name, "word_problem S3", 0)
    }
    assert {line.split for line in lines[:-2]} == {"train"}


def test_the_rate_follows_its_schedule(tmp_path: Path) -> None:
    rates = [report.learning_rate for report in finish(TINY, tmp_path)]
    assert rates == [1e-2 * RateSchedule().at(step, 10) for step in range(10)]


def failing(norms: Iterable[float]) -> Clip:
    left = iter(norms)

    def clip(model: nn.Module, max_norm: float) -> torch.Tensor:
        found = clip_gradients(model, max_norm)
        return found * next(left, 1.0)

    return clip


def test_a_step_without_a_finite_gradient_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "clip_gradients", failing([1.0, math.nan, math.inf]))
    run = Trainer(TINY, tmp_path)
    steps = run.run()
    next(steps)
    before = {name: leaf.clone() for name, leaf in run.model.state_dict().items()}
    assert math.isnan(next(steps).grad_norm) and next(steps).grad_norm == math.inf
    assert run.position.skipped == 2
    assert all(leaf.equal(before[name]) for name, leaf in run.model.state_dict().items())
    assert math.isfinite(next(steps).grad_norm)
    assert run.position.skipped == 0
    assert any(not leaf.equal(before[name]) for name, leaf in run.model.state_dict().items())


def test_ten_such_steps_in_a_row_end_the_run_even_across_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No step is ever taken, so the optimizer has no moments to save either.
    monkeypatch.setattr(trainer, "clip_gradients", never_finite)
    steps = Trainer(replace(TINY, steps=20), tmp_path).run()
    assert [next(steps).step for _ in range(7)] == list(range(1, 8))
    again = Trainer(replace(TINY, steps=20), tmp_path, resume=True)
    assert (again.position.step, again.position.skipped) == (6, 6)
    with pytest.raises(Diverged, match=r"^step 10: .* 10 steps in a row; lower optim.rate"):
        list(again.run())


def test_a_run_resumes_to_the_same_end_before_the_optimizer_has_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = [math.nan] * 4
    monkeypatch.setattr(trainer, "clip_gradients", failing(norms))
    finish(TINY, tmp_path / "unbroken")
    monkeypatch.setattr(trainer, "clip_gradients", failing(norms))
    for report in Trainer(TINY, tmp_path / "run").run():
        if report.step == 3:
            break
    monkeypatch.setattr(trainer, "clip_gradients", failing(norms[3:]))
    finish(TINY, tmp_path / "run", resume=True)
    assert left_behind(tmp_path / "run") == left_behind(tmp_path / "unbroken")


@pytest.mark.parametrize("call", range(1, 6))
def test_a_disk_full_in_a_checkpoint_leaves_the_last_good_one(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(TINY, tmp_path / "unbroken")
    steps = Trainer(TINY, tmp_path / "run").run()
    for _ in range(5):
        next(steps)
    sync, made = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal made
        made += 1
        full_disk() if made == call else sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    told = r"-00000006: could not be written \(.*No space.*\); the last good one is .*-00000003$"
    with pytest.raises(CheckpointError, match=told) as caught:
        next(steps)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path / "run/checkpoints") == ["step-00000003"]
    monkeypatch.setattr(os, "fsync", sync)
    finish(TINY, tmp_path / "run", resume=True)
    assert curve(tmp_path / "run") == curve(tmp_path / "unbroken")
    assert left_behind(tmp_path / "run") == left_behind(tmp_path / "unbroken")


def test_a_disk_full_at_the_first_checkpoint_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Trainer(TINY, tmp_path).run()
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(CheckpointError, match=r"there is no earlier one$"):
        list(steps)
    assert complete_checkpoints(tmp_path) == []


def test_a_disk_full_in_the_metrics_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Trainer(TINY, tmp_path)

    def torn(path: Path, records: Iterable[Record]) -> None:
        path.write_bytes(b'{"name": "lo')
        full_disk()

    monkeypatch.setattr(record, "append", torn)
    with pytest.raises(OSError, match=r"metrics\.jsonl: could not be written .*No space left"):
        list(run.run())
    monkeypatch.undo()
    finish(TINY, tmp_path, resume=True)
    assert len(curve(tmp_path)) == 6 * TINY.steps + 1


def test_what_cannot_be_is_refused_before_the_folder_is_taken(tmp_path: Path) -> None:
    wrong: dict[str, Recipe] = {
        r"model.vocab_size: expected an integer >= 6": replace(
            TINY, model=replace(EXPLICIT, vocab_size=5)
        ),
        r"head_width: expected a divisor": replace(TINY, model=replace(EXPLICIT, width=15)),
    }
    if not torch.cuda.is_available():
        wrong["device: expected cpu on this machine"] = replace(TINY, device="cuda")
    for told, recipe in wrong.items():
        with pytest.raises(ValueError, match=told):
            Trainer(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_other_things_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("somebody else's\n")
    with pytest.raises(ConfigError, match="holds a run already"):
        Trainer(TINY, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "somebody else's\n"


def test_a_run_ends_where_its_task_is_learnt_and_stays_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "LEARNT_STEPS", 3)
    learnt = AdaptiveLengths(lengths=(5,), until=1e-3)
    recipe = replace(PLAIN, steps=9, batch_size=16, curriculum=learnt)
    reports = finish(recipe, tmp_path)
    assert all(report.accuracy > 0 for report in reports)
    assert [report.step for report in reports] == [1, 2, 3]
    assert [r.step for r in record.read(tmp_path / "metrics.jsonl") if r.name == "parameters"] == [
        3
    ]
    # A checkpoint is there, which knows that nothing is left to do.
    assert finish(recipe, tmp_path, resume=True) == []
