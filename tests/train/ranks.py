"""Runs of a recipe on several processes of this machine, for tests.

Workers come from a fork server that has imported everything once. A worker's trouble is the test's.
"""

import errno
import multiprocessing
import os
import socket
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from equilm.train import parallel
from equilm.train.recipe import Recipe
from equilm.train.trainer import Trainer
from tests.train.tiny import MODEL, TINY

# Eight rows for up to four ranks; dropout draws by rank, so that it would tell their number.
RECIPE = replace(
    TINY, model=replace(MODEL, dropout=0.0), batch_size=8, device="cpu", precision="float32"
)


def train(size: int, recipe: Recipe, folder: Path, *, until: int | None = None) -> None:
    """Train on `size` processes, going on from the newest checkpoint.

    Args:
        size: At least 2.
        recipe: What to do.
        folder: Of the run.
        until: The step after which to stop, as a kill would; the end if left out.
    """
    run_on(size, _train, recipe, folder, until)


def train_until_full(size: int, recipe: Recipe, folder: Path, *, step: int) -> list[str]:
    """Train while the last rank's disk takes nothing any more from a checkpoint at `step` on.

    Returns:
        The last line of each rank's trouble.
    """
    try:
        run_on(size, _train_until_full, recipe, folder, step)
    except AssertionError as error:
        lines = str(error).splitlines()
        return [line for line in lines if "Error: " in line]
    return []


def run_on(size: int, work: Callable[..., None], *args: Any) -> None:
    """Call `work(*args)` on `size` processes that form a group."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.ranks"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers, ends = [], []
    for rank in range(size):
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(rank, size, port, theirs, work, args))
        worker.start()
        theirs.close()
        workers.append(worker)
        ends.append(ours)
    troubles = [end.recv() for end in ends]
    for worker in workers:
        worker.join()
    assert troubles == [""] * size, "\n".join(troubles)


def _train(recipe: Recipe, folder: Path, until: int | None) -> None:
    trainer = Trainer(recipe, folder, resume=True)
    for report in trainer.run():
        if report.step == until:
            # What was begun to be written is; a kill would find it so at a later step.
            trainer.publish(wait=True)
            break


def _train_until_full(recipe: Recipe, folder: Path, step: int) -> None:
    trainer = Trainer(recipe, folder, resume=True)
    write = HuggingFaceStorageWriter.write_data

    def write_data(writer: Any, *args: Any) -> Any:
        if trainer.ranks.rank == trainer.ranks.size - 1 and trainer.position.step >= step:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(writer, *args)

    setattr(HuggingFaceStorageWriter, "write_data", write_data)  # noqa: B010
    list(trainer.run())


def _work(
    rank: int, size: int, port: int, end: Connection, work: Callable[..., None], args: Any
) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(max(1, size // 2)),  # as if on two nodes
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    trouble = ""
    try:
        work(*args)
        parallel.leave()
    except BaseException:
        trouble = traceback.format_exc()
    end.send(trouble)
