"""Numbers go to the file and, on request, to TensorBoard; a missing package is one line."""

import sys
from pathlib import Path

import pytest

from equilm import record
from equilm.train.metrics import StepReport, summary_writer
from equilm.train.trainer import Trainer
from tests.train.tiny import TINY, curve, finish

STEP = StepReport(
    step=3,
    loss=1.5,
    accuracy=0.25,
    length=8,
    sweeps=6.0,
    learning_rate=1e-3,
    grad_norm=float("inf"),
    tokens_per_second=100.0,
    seconds=2.0,
)


def test_a_step_is_eight_records() -> None:
    found = {one.name: one for one in STEP.records({"model": "a", "seed": 4})}
    values = {name: one.value for name, one in found.items()}
    assert values == {
        "loss": 1.5,
        "accuracy": 0.25,
        "length": 8.0,
        "sweeps": 6.0,
        "learning_rate": 1e-3,
        "grad_norm": float("inf"),
        "tokens_per_second": 100.0,
        "seconds": 2.0,
    }
    about = {(one.step, one.length, one.split, one.model, one.seed) for one in found.values()}
    assert about == {(3, 8, "train", "a", 4)}
    assert (found["loss"].unit, found["accuracy"].unit) == ("nats", "share")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_holds_what_the_file_holds_even_after_a_resume(tmp_path: Path) -> None:
    for report in Trainer(TINY, tmp_path, tensorboard=True).run():
        if report.step == 5:
            break
    list(Trainer(TINY, tmp_path, resume=True, tensorboard=True).run())

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    lines = [line for line in record.read(tmp_path / "metrics.jsonl") if line.name == "loss"]
    scalars = board.Scalars("train/loss")
    assert [one.step for one in scalars] == list(range(1, 11))
    assert [one.value for one in scalars] == pytest.approx([line.value for line in lines])
    assert {"train/accuracy", "train/length", "run/parameters"} <= set(board.Tags()["scalars"])


def test_without_tensorboard_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    told = r"^tensorboard: expected the package, got none; pip install equilm\[tensorboard\]$"
    with pytest.raises(ValueError, match=told):
        summary_writer()
    with pytest.raises(ValueError, match=told):
        Trainer(TINY, tmp_path / "run", tensorboard=True)
    # The folder was not taken, so the same command without TensorBoard begins the run.
    finish(TINY, tmp_path / "run")
    assert curve(tmp_path / "run")
