"""A checkpoint holds all that a run needs, and old ones go when they should."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from equilm.nn.folder import CheckpointError, complete_checkpoints, save_model
from equilm.nn.model import LanguageModel
from equilm.train.checkpoint import (
    Position,
    delete_old,
    load_checkpoint,
    load_newest,
    newest_checkpoint,
    save_checkpoint,
    step_of,
)
from equilm.train.optim import OptimConfig, build_optimizer
from equilm.train.schedule import Place
from tests.train.tiny import MODEL

CONFIG = replace(MODEL, vocab_size=6)
SOMEWHERE = Position(step=7, place=Place(2, 5), skipped=1, seconds=1.5)


def build(seed: int = 0) -> tuple[LanguageModel, torch.optim.AdamW]:
    model = LanguageModel(CONFIG, generator=torch.Generator().manual_seed(seed))
    return model, build_optimizer(model, OptimConfig())


def descend(model: LanguageModel, optimizer: torch.optim.AdamW) -> None:
    torch.manual_seed(3)
    logits_BTV, _ = model(torch.tensor([[0, 1, 2], [3, 4, 5]]))
    optimizer.zero_grad()
    logits_BTV.square().sum().backward()
    optimizer.step()


def test_model_optimizer_and_position_come_back(tmp_path: Path) -> None:
    model, optimizer = build()
    descend(model, optimizer)
    folder = save_checkpoint(tmp_path, model, optimizer, SOMEWHERE)
    other, other_optimizer = build(seed=1)
    assert load_checkpoint(folder, other, other_optimizer) == SOMEWHERE
    for one in ((model, optimizer), (other, other_optimizer)):
        descend(*one)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(left.equal(right) for left, right in pairs)


def test_an_optimizer_without_moments_comes_back_without(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, *build(), SOMEWHERE)
    model, optimizer = build(seed=1)
    load_checkpoint(folder, model, optimizer)
    assert not optimizer.state


def test_a_run_without_a_checkpoint_is_at_its_start(tmp_path: Path) -> None:
    model, optimizer = build()
    assert load_newest(tmp_path, model, optimizer) == Position()
    assert newest_checkpoint(tmp_path) is None


def test_a_model_folder_is_no_training_checkpoint(tmp_path: Path) -> None:
    model, optimizer = build()
    save_model(model, tmp_path / "plain")
    with pytest.raises(CheckpointError, match=r"expected a digest of training\.json"):
        load_checkpoint(tmp_path / "plain", model, optimizer)


@pytest.mark.parametrize("training", ["[]", "{}", '{"step": 1, "place": 3}', '{"place": [1]', ""])
def test_a_strange_position_is_one_line(training: str, tmp_path: Path) -> None:
    model, optimizer = build()
    extra = {"training.json": training.encode(), "optimizer.safetensors": b""}
    save_model(model, tmp_path / "strange", extra=extra)
    with pytest.raises(CheckpointError, match=r"strange: no training checkpoint of this run \("):
        load_checkpoint(tmp_path / "strange", model, optimizer)


def test_only_the_newest_stay_and_half_deleted_ones_go(tmp_path: Path) -> None:
    model, optimizer = build()
    for step in (2, 4, 10, 30):
        save_checkpoint(tmp_path, model, optimizer, replace(SOMEWHERE, step=step))
    # What kill -9 leaves of a deletion: no weights any more, yet a large file.
    (tmp_path / "checkpoints/step-00000004/model.safetensors").unlink()
    (tmp_path / "checkpoints/step-notes").mkdir()
    delete_old(tmp_path, keep=2)
    left = {folder.name for folder in (tmp_path / "checkpoints").iterdir()}
    assert left == {"step-00000010", "step-00000030", "step-notes"}
    delete_old(tmp_path, keep=5)
    assert [step_of(folder) for folder in complete_checkpoints(tmp_path)] == [10, 30]
    delete_old(tmp_path / "nothing", keep=2)


def test_nothing_in_a_checkpoint_needs_unpickling(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, *build(), SOMEWHERE)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    training = json.loads((folder / "training.json").read_text())
    assert training == {"step": 7, "place": [2, 5, 0], "skipped": 1, "seconds": 1.5}


def test_steps_are_read_from_names() -> None:
    assert step_of(Path("run/checkpoints/step-00000650")) == 650
    assert step_of(Path("run/step-last")) is None
