"""Several processes train what one does, and a run moves between any numbers of them."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import equilm
from equilm import config, record
from equilm.nn.folder import CheckpointError, complete_checkpoints
from equilm.tasks import TextConfig
from equilm.train.schedule import FixedLengths
from equilm.train.trainer import Trainer
from tests.data.corpus import prepared, texts
from tests.train.ranks import RECIPE, train, train_until_full
from tests.train.tiny import curve, finish

pytestmark = pytest.mark.multi


def losses(folder: Path) -> list[float]:
    """Return the loss of every step."""
    lines = record.read(folder / "metrics.jsonl")
    return [line.value for line in lines if line.name == "loss" and isinstance(line.value, float)]


def weights(folder: Path) -> torch.Tensor:
    """Return all weights of the newest checkpoint of a run."""
    return torch.cat([leaf.detach().flatten() for leaf in equilm.load(folder).parameters()])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    torch.set_num_threads(1)
    finish(RECIPE, folder)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    train(2, RECIPE, folder)
    return folder


def test_two_processes_give_the_curve_of_one(alone: Path, pair: Path) -> None:
    assert losses(pair) == pytest.approx(losses(alone), rel=1e-5)
    same = [
        [(line.step, line.value) for line in record.read(folder / "metrics.jsonl")
         if line.name in ("length", "sweeps", "accuracy", "learning_rate")]
        for folder in (pair, alone)
    ]  # fmt: skip
    assert same[0] == same[1]
    torch.testing.assert_close(weights(pair), weights(alone), rtol=1e-4, atol=1e-5)
    assert [step.name for step in complete_checkpoints(pair)] == ["step-00000009", "step-00000010"]
    assert sorted(path.name for path in (pair / "checkpoints").iterdir())[0] == "step-00000009"


@pytest.mark.parametrize("shard", ["node", "off"])
def test_copies_give_the_same_curve_in_pieces_too(shard: str, alone: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, shard=shard, rows_at_once=1)  # type: ignore[arg-type]
    train(2, recipe, tmp_path)
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-5)


def test_a_run_of_two_goes_on_with_one_and_with_four(pair: Path, tmp_path: Path) -> None:
    # Two nodes of one, then of two.
    recipe, run = replace(RECIPE, shard="node"), tmp_path / "run"
    train(2, recipe, run, until=3)
    assert [step.name for step in complete_checkpoints(run)] == ["step-00000003"]
    for report in Trainer(recipe, run, resume=True).run():
        if report.step == 6:
            break
    train(4, recipe, run)
    assert losses(run) == pytest.approx(losses(pair), rel=1e-5)
    torch.testing.assert_close(weights(run), weights(pair), rtol=1e-4, atol=1e-5)


def test_a_run_begun_by_one_goes_on_with_two(alone: Path, tmp_path: Path) -> None:
    for report in Trainer(RECIPE, tmp_path).run():
        if report.step == 6:
            break
    train(2, RECIPE, tmp_path)
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-5)


def test_killed_in_a_step_and_restarted_two_give_the_unbroken_curve(
    pair: Path, tmp_path: Path
) -> None:
    config.save(RECIPE, tmp_path / "recipe.json")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    arguments = ["--nproc-per-node", "2", "--max-restarts", "1", "-m", "tests.train.dies"]
    command = ["train", str(tmp_path / "recipe.json"), "--out", str(tmp_path / "run"), "--resume"]
    done = subprocess.run(
        [*torchrun, *arguments, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    # The second time; whether the checkpoint of step 6 was written by then is for the disk to say.
    assert re.search("steps [36] to 10", done.stdout), done.stdout
    assert curve(tmp_path / "run") == curve(pair)
    assert weights(tmp_path / "run").equal(weights(pair))


def test_a_checkpoint_of_two_becomes_a_model_folder(pair: Path, tmp_path: Path) -> None:
    equilm.convert(pair, tmp_path / "model")
    assert weights(tmp_path / "model").equal(weights(pair))
    newest = complete_checkpoints(pair)[-1]
    piece = sorted((newest / "shards").iterdir())[0]
    data = piece.read_bytes()
    for broken, told in ((data[: len(data) // 2], "shards: "), (None, "pieces are missing")):
        piece.unlink()
        if broken is not None:
            piece.write_bytes(broken)
        with pytest.raises(CheckpointError, match=told) as caught:
            equilm.load(newest)
        assert "\n" not in str(caught.value)
        with pytest.raises(
            CheckpointError, match=r"delete .*-00000010 to resume from .*-00000009$"
        ):
            Trainer(RECIPE, pair, resume=True)
        piece.write_bytes(data)


def test_text_is_read_row_by_row_and_documents_stay_apart(tmp_path: Path) -> None:
    folder = prepared(tmp_path, texts(60))
    recipe = replace(
        RECIPE,
        task=TextConfig(sources=(str(folder),)),
        curriculum=FixedLengths(lengths=(12,)),
        steps=4,
    )
    finish(recipe, tmp_path / "alone")
    train(2, recipe, tmp_path / "pair")
    assert losses(tmp_path / "pair") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


def test_ranks_need_equally_many_rows(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="batch_size: expected a multiple of the 2 processes"):
        train(2, replace(RECIPE, batch_size=3), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_disk_full_on_one_rank_ends_all_and_leaves_the_last_good_checkpoint(
    pair: Path, tmp_path: Path
) -> None:
    troubles = train_until_full(2, RECIPE, tmp_path, step=6)
    told = (
        r"CheckpointError: .*-00000006: could not be written \(.*No space left on device.*\); "
        r"the last good one is .*-00000003$"
    )
    assert len(troubles) == 2
    assert all(re.search(told, trouble) for trouble in troubles), troubles
    assert [step.name for step in complete_checkpoints(tmp_path)] == ["step-00000003"]
    train(2, RECIPE, tmp_path)
    assert curve(tmp_path) == curve(pair)
    assert len(list((tmp_path / "checkpoints").iterdir())) == RECIPE.keep_checkpoints


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("shard", ["all", "off"])
def test_two_gpus_give_the_curve_of_one(shard: str, tmp_path: Path) -> None:
    recipe = replace(RECIPE, device="cuda", shard=shard)  # type: ignore[arg-type]
    finish(recipe, tmp_path / "alone")
    train(2, recipe, tmp_path / "pair")
    assert losses(tmp_path / "pair") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)
