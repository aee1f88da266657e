"""Checkpoints of a model that is spread over ranks: each writes its part, beside the training.

    run/checkpoints/step-00000650/{config.json, training.json, shards/*.safetensors}

A checkpoint gets its name when every rank's part is on the disk, so that what has the name is
whole. Any number of ranks reads it. Read `equilm/nn/shards.py` next.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from equilm.config import encode
from equilm.nn import shards
from equilm.nn.atomic import put_in_place, write_file
from equilm.nn.folder import CONFIG, VERSION, CheckpointError, complete_checkpoints
from equilm.nn.model import LanguageModel, ModelConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


class Saver:
    """Saves one checkpoint at a time while training goes on.

    Args:
        is_first: Whether this rank gives checkpoints their name.
    """

    def __init__(self, *, is_first: bool) -> None:
        self.is_first = is_first
        # Of its own: what it says from its thread must not mix with what training says.
        self.group = dist.new_group(backend="gloo")
        self._writing: Future[Any] | None = None
        self._files: Mapping[str, bytes] = {}
        self._folder = Path()

    def begin(
        self,
        folder: Path,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        extra: Mapping[str, bytes],
    ) -> None:
        """Copy everything to the host and begin to write it; waits for an unfinished one first.

        Args:
            folder: Of the checkpoint.
            model: Spread.
            optimizer: Over its parameters.
            extra: Files to put beside, by name.

        Raises:
            CheckpointError: If the one before could not be written.
        """
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import async_save

        self.finish()
        self._folder, self._files = folder, _described(model.config, extra)
        unfinished = _unfinished(folder)
        if self.is_first:
            shutil.rmtree(unfinished, ignore_errors=True)
            (unfinished / shards.SHARDS).mkdir(parents=True)
        dist.barrier(self.group)
        writer = HuggingFaceStorageWriter(str(unfinished / shards.SHARDS), save_distributed=True)
        tensors: dict[str, Any] = {**tensors_of(model, optimizer)}
        writing = async_save(tensors, storage_writer=writer, process_group=self.group)
        assert isinstance(writing, Future)
        self._writing = writing

    def finish(self, *, wait: bool = True) -> Path | None:
        """Give the last checkpoint its name, if it has none yet.

        Args:
            wait: Whether to wait until it is written; all ranks do so together. Without it a
                failure is left for the next time that they wait, so that all end with it.

        Returns:
            Its folder, on the rank that gave it its name just now.

        Raises:
            CheckpointError: If it could not be written.
        """
        from torch.distributed.checkpoint.api import CheckpointException

        if self._writing is None or not (wait or self._is_ready(self._writing)):
            return None
        writing, self._writing = self._writing, None
        try:
            writing.result()
            if not self.is_first:
                return None
            unfinished = _unfinished(self._folder)
            for name, data in self._files.items():
                write_file(unfinished / name, data)
            put_in_place(unfinished, self._folder)
        except (CheckpointException, OSError, RuntimeError) as error:
            raise could_not_be_written(self._folder, error) from None
        return self._folder

    def _is_ready(self, writing: Future[Any]) -> bool:
        return self.is_first and writing.done() and writing.exception() is None


def could_not_be_written(folder: Path, error: BaseException) -> CheckpointError:
    """Return what to tell of a checkpoint that failed: why, and which is the last good one."""
    good = complete_checkpoints(folder.parents[1])
    rest = f"the last good one is {good[-1]}" if good else "there is no earlier one"
    reason = str(error).strip().splitlines()[-1]
    return CheckpointError(f"{folder}: could not be written ({reason}); {rest}")


def delete_unfinished(run: Path) -> None:
    """Delete what a kill left of checkpoints that had no name yet."""
    for folder in Path(run, "checkpoints").glob(".step-*.unfinished"):
        shutil.rmtree(folder, ignore_errors=True)


def load(folder: Path, model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
    """Fill model and optimizer from a checkpoint, each whole or spread over any number of ranks.

    Raises:
        CheckpointError: If it is damaged or does not fit.
    """
    try:
        known = shards.sizes(folder)
        for name, parameter in model.named_parameters():
            if f"{name}/step" in known:
                optimizer.state[parameter] = {
                    "step": torch.zeros(()),
                    **{key: torch.zeros_like(parameter.detach()) for key in MOMENTS},
                }
        shards.fill(tensors_of(model, optimizer), folder, alone=not dist.is_initialized())
    except shards.ShardsError as error:
        raise CheckpointError(str(error)) from None


def tensors_of(model: LanguageModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what a checkpoint holds, by name; each tensor shares memory with its owner."""
    tensors = {shards.MODEL + name: leaf.detach() for name, leaf in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        moments = optimizer.state.get(parameter, {})
        tensors |= {f"{name}/{key}": moments[key] for key in MOMENTS if key in moments}
        if "step" in moments:
            tensors[f"{name}/step"] = moments["step"].view(1)  # no piece of a scalar can be read
    return tensors


def _described(config: ModelConfig, extra: Mapping[str, bytes]) -> dict[str, bytes]:
    settings = {
        "format": shards.FORMAT,
        "version": VERSION,
        "model": encode(config),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in extra.items()},
    }
    return {**extra, CONFIG: (json.dumps(settings, indent=2) + "\n").encode()}


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.unfinished")
