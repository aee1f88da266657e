"""Evaluating a run where it lies: its newest model, on its own task and device."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from equilm import config, record
from equilm.hf.convert import load
from equilm.measure.at_lengths import AtLengths
from equilm.measure.evaluate import EvaluationConfig, evaluate
from equilm.measure.precision import compare_precision
from equilm.nn.equilibrium import Equilibrium
from equilm.record import Record
from equilm.report.tables import Table
from equilm.tasks import Batch, build_task
from equilm.train.checkpoint import newest_checkpoint, step_of
from equilm.train.recipe import Recipe, use_device
from equilm.train.schedule import Phase


def evaluate_run(path: Path, settings: EvaluationConfig) -> list[Record]:
    """Measure a run, or a checkpoint in one, and append the Records to its `records.jsonl`.

    Prefixes of long sequences, or sequences of each length where the task asks at their ends.

    Args:
        path: Of the run, or of a checkpoint below it.
        settings: Lengths, windows, tolerance.

    Returns:
        The Records.

    Raises:
        ValueError: If there is no run there, or no checkpoint yet.
    """
    run, folder, recipe = find_run(path)
    device = use_device(recipe.device, threads=recipe.threads)
    about: dict[str, Any] = {
        # Solved from a guess, a model must not stand in a line with itself solved from zero.
        "model": run.name + (" by attractors" if settings.attractors else ""),
        "seed": recipe.seed,
        "step": step_of(folder),
        **record.environment(device.type),
    }
    model, task = load(folder, device=device), build_task(recipe.task)
    if settings.attractors and task.asks_at_end:
        raise ValueError("attractors: expected a task that asks all along, got one that asks last")
    with settings.computing(device):
        if task.asks_at_end:
            implicit = isinstance(model.core, Equilibrium)
            windows = settings.windows if implicit else settings.windows[:1]
            records = [
                replace(one, **about)
                for window in windows
                for one in _by_length(settings, window).records(model, task)
            ]
        else:
            records = list(evaluate(model, task, settings, about=about))
    record.append(run / "records.jsonl", records)
    return records


def compare_run(path: Path, *, length: int, batch_size: int, seed: int) -> Table:
    """Solve a test batch of a run's task in full and in 8 bits, as deep as its last phase.

    Args:
        path: Of the run, or of a checkpoint below it.
        length: Tokens of a sequence.
        batch_size: Sequences.
        seed: Of the sequences.

    Raises:
        ValueError: If there is no run there, no checkpoint yet, or no implicit model in it.
    """
    _, folder, recipe = find_run(path)
    device = use_device(recipe.device, threads=recipe.threads)
    model, depth = load(folder, device=device), recipe.phases[-1] if recipe.phases else Phase()
    batch = build_task(recipe.task).batch(
        split="test", length=length, batch_size=batch_size, seed=seed, index=0
    )
    uses_bf16 = recipe.precision == "bf16" and device.type == "cuda"
    with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16):
        return compare_precision(
            model,
            Batch(*(part.to(device) for part in batch)),
            sweeps=depth.max_steps,
            steps=depth.phantom_steps,
        )


def _by_length(settings: EvaluationConfig, window: int) -> AtLengths:
    """The same settings for a task whose lengths are measured one by one."""
    return AtLengths(
        lengths=settings.lengths,
        batch_size=settings.batch_size,
        window=window or None,
        seed=settings.seed,
        split=settings.split,
        tolerance=settings.tolerance,
        max_steps=settings.max_steps,
    )


def find_run(path: Path) -> tuple[Path, Path, Recipe]:
    """Return the run that a path lies in, its checkpoint (the newest of a run), and its recipe.

    Raises:
        ValueError: If there is no run there, or no checkpoint yet.
    """
    path = path.resolve()
    run = next((one for one in (path, *path.parents) if (one / "recipe.json").exists()), None)
    if run is None:
        raise ValueError(f"{path}: expected the folder of a run, with recipe.json")
    recipe = config.load(Recipe, run / "recipe.json")
    folder = newest_checkpoint(run) if path == run else path
    if folder is None:
        raise ValueError(f"{run}: expected a checkpoint, got none yet")
    return run, folder, recipe
