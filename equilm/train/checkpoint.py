"""Checkpoints of a run: model folders with the optimizer and the position beside the weights.

    run/recipe.json
    run/metrics.jsonl
    run/checkpoints/step-00000650/{config.json, model.safetensors,
                                   optimizer.safetensors, training.json, carried.safetensors}

of one process, or of copies; those of a spread model are `sharded.py`'s, and are read here as well.
Written whole or not at all and never unpickled: `equilm/nn/folder.py`. Read `trainer.py` next.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from equilm.nn.folder import (
    CheckpointError,
    complete_checkpoints,
    load_weights,
    read_extra,
    save_model,
)
from equilm.nn.model import LanguageModel
from equilm.nn.shards import SHARDS
from equilm.train import carry, parallel, sharded
from equilm.train.carry import Carried
from equilm.train.schedule import Place

OPTIMIZER, TRAINING = "optimizer.safetensors", "training.json"
CARRIED = "carried.safetensors"  # where rows go on from step to step alone
ADAM = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands. Data and dropout follow from the step, so they need no more."""

    step: int = 0  # taken
    place: Place = field(default_factory=Place)  # in the curriculum
    skipped: int = 0  # steps without a finite gradient, the last ones in a row
    seconds: float = 0.0  # of training
    carried: Carried | None = None  # rows that go on


def save_checkpoint(
    run: Path,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    position: Position,
) -> Path:
    """Write a checkpoint, whole or not at all.

    Raises:
        CheckpointError: If it could not be written; names the last good one.
    """
    folder = checkpoint_folder(run, position)
    moments = {
        f"{name}/{key}": optimizer.state[parameter][key].cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state  # it has none before its first step
        for key in ADAM
    }
    extra = {
        OPTIMIZER: safetensors.torch.save(moments),
        TRAINING: training_file(position),
    }
    if position.carried is not None:
        extra[CARRIED] = safetensors.torch.save(carry.tensors_of(position.carried))
    try:
        save_model(model, folder, extra=extra)
    except OSError as error:
        raise sharded.could_not_be_written(folder, error) from None
    return folder


def checkpoint_folder(run: Path, position: Position) -> Path:
    """Return where the checkpoint of a position lies."""
    return run / "checkpoints" / f"step-{position.step:08d}"


def training_file(position: Position) -> bytes:
    """Return a position as the file TRAINING holds it."""
    told = asdict(replace(position, carried=None))
    if position.carried is None:
        del told["carried"]
    else:
        # The tensors have a file of their own.
        told["carried"] = CARRIED
    return (json.dumps(told, indent=2) + "\n").encode()


def delete_old(run: Path, *, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what a kill left of one deleted before."""
    kept = [step_of(folder) or 0 for folder in complete_checkpoints(run)[-keep:]]
    for folder in Path(run, "checkpoints").glob("step-*"):
        step = step_of(folder)
        if step is not None and step < min(kept, default=0):
            shutil.rmtree(folder)


def load_newest(run: Path, model: LanguageModel, optimizer: torch.optim.Optimizer) -> Position:
    """Fill model and optimizer from the newest whole checkpoint of a run, if it has one.

    Returns:
        Where the run stood; at its start without a checkpoint.

    Raises:
        CheckpointError: If it is damaged or does not fit; names the one before it.
    """
    found = complete_checkpoints(run)
    if not found:
        return Position()
    try:
        return load_checkpoint(found[-1], model, optimizer)
    except CheckpointError as error:
        before = f"resume from {found[-2]}" if len(found) > 1 else "begin anew"
        raise CheckpointError(f"{error}; delete {found[-1]} to {before}") from None


def load_checkpoint(
    folder: Path, model: LanguageModel, optimizer: torch.optim.Optimizer
) -> Position:
    """Fill model and optimizer from a checkpoint and return where the run stood.

    Raises:
        CheckpointError: If a file is missing, broken or does not fit.
    """
    training_json = read_extra(folder, TRAINING)
    try:
        training = json.loads(training_json)
        carried = training.pop("carried", None)
        position = Position(**{**training, "place": Place(*training["place"])})
        if carried is not None:
            tensors = safetensors.torch.load(read_extra(folder, CARRIED))
            position = replace(position, carried=carry.from_tensors(model, tensors))
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: no training checkpoint of this run ({error})") from None
    if (folder / SHARDS).is_dir():
        sharded.load(folder, model, optimizer)
    else:
        _load_whole(folder, model, optimizer)
    return position


def _load_whole(folder: Path, model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
    load_weights(model, folder, place=parallel.laid_like)
    try:
        moments = safetensors.torch.load(read_extra(folder, OPTIMIZER))
    except SafetensorError as error:
        raise CheckpointError(f"{folder}: no training checkpoint of this run ({error})") from None
    for name, parameter in model.named_parameters():
        # The step count stays on the host, as a fresh optimizer keeps it.
        found = {key: moments[f"{name}/{key}"] for key in ADAM if f"{name}/{key}" in moments}
        if found:
            optimizer.state[parameter] = {
                key: leaf if key == "step" else parallel.laid_like(leaf, parameter)
                for key, leaf in found.items()
            }


def step_of(folder: Path) -> int | None:
    """Return the step that a checkpoint's name tells, if it has such a name."""
    number = folder.name.removeprefix("step-")
    return int(number) if number.isdecimal() else None


def place_of(folder: Path) -> Place:
    """Return where in the curriculum a checkpoint of a run stands.

    Raises:
        CheckpointError: If it is none of a run.
    """
    return Place(*json.loads(read_extra(folder, TRAINING))["place"])


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest whole checkpoint of a run."""
    return next(reversed(complete_checkpoints(run)), None)
