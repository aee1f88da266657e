"""Evaluating a run where it lies: its newest model, on its own task and device."""

from pathlib import Path

from equilm import config, record
from equilm.hf.convert import load
from equilm.measure.evaluate import EvaluationConfig, evaluate
from equilm.record import Record
from equilm.tasks import build_task
from equilm.train.checkpoint import newest_checkpoint, step_of
from equilm.train.recipe import Recipe, use_device


def evaluate_run(path: Path, settings: EvaluationConfig) -> list[Record]:
    """Measure a run, or a checkpoint in one, and append the Records to its `records.jsonl`.

    Args:
        path: Of the run, or of a checkpoint below it.
        settings: Lengths, windows, tolerance.

    Returns:
        The Records.

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
    device = use_device(recipe.device, threads=recipe.threads)
    about = {
        "model": run.name,
        "seed": recipe.seed,
        "step": step_of(folder),
        **record.environment(device.type),
    }
    model = load(folder, device=device)
    records = list(evaluate(model, build_task(recipe.task), settings, about=about))
    record.append(run / "records.jsonl", records)
    return records
