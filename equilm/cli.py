"""The command line: `equilm train | evaluate | check | report | convert | bench`.

Only reads arguments, calls one function of the package a command, and prints. A user's mistake is
one line and exit code 2, a run that failed is exit code 1.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional, UseAppendAction, arg

if TYPE_CHECKING:
    from equilm.measure.evaluate import EvaluationConfig
    from equilm.record import Record

console = Console()
errors = Console(stderr=True)


def train(
    recipe: Positional[Path | None] = None,
    /,
    *,
    out: Path | None = None,
    overrides: Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="KEY=VALUE")] = (),
    resume: bool = False,
    tensorboard: bool = False,
) -> None:
    """Train a model by a recipe.

    Args:
        recipe: A .toml or .json file; without one, the published state-tracking recipe, or with
            --resume the one the run was begun with.
        out: Folder of the run: recipe.json, metrics.jsonl, checkpoints. Default runs/RECIPE.
        overrides: Change a setting of the recipe, for example --set model=mamba2-130m or
            --set optim.rate=1e-3 (repeatable).
        resume: Go on from the newest checkpoint in OUT, bit for bit.
        tensorboard: Write OUT/tensorboard as well.
    """
    from equilm import config
    from equilm.nn.model import parameter_count
    from equilm.train.progress import show
    from equilm.train.recipe import Recipe
    from equilm.train.trainer import Trainer

    out = out or Path("runs") / (recipe.stem if recipe else "default")
    if recipe is None and resume:
        recipe = out / "recipe.json"
    settings = config.load(Recipe, recipe, overrides)
    trainer = Trainer(settings, out, resume=resume, tensorboard=tensorboard)
    console.print(
        f"{out}: {parameter_count(trainer.model):,} parameters on {trainer.device.type}, "
        f"steps {trainer.step} to {settings.steps}",
        highlight=False,
    )
    show(trainer.run(), name=out.name, num_steps=settings.steps, console=console)


def evaluate(
    runs: Positional[tuple[Path, ...]],
    /,
    *,
    lengths: tuple[int, ...] = (16, 64, 256, 1000, 2000),
    windows: tuple[int, ...] = (1,),
    batch_size: int = 16,
    seed: int = 0,
    tolerance: float = 0.05,
    max_steps: int = 64,
) -> None:
    """Measure runs on the test split of their task, and add the Records to RUN/records.jsonl.

    Args:
        runs: Folders of runs, or checkpoints in them.
        lengths: Sequence lengths to report, in tokens.
        windows: Tokens an implicit model solves at once: 1 is sequential, 0 all of them.
        batch_size: Sequences.
        seed: Of the sequences.
        tolerance: Of the solve, relative.
        max_steps: Evaluations a token may take.
    """
    from equilm.measure.evaluate import EvaluationConfig
    from equilm.report.tables import accuracy_table, effort_table
    from equilm.solve.iterate import Solve

    settings = EvaluationConfig(
        lengths=lengths,
        windows=windows,
        batch_size=batch_size,
        seed=seed,
        solve=Solve(tolerance=tolerance, max_steps=max_steps),
    )
    records = []
    for run in runs:
        with console.status(f"evaluating {run}"):
            records += _evaluate_run(run, settings)
    for table in (accuracy_table(records), effort_table(records)):
        if table is not None:
            console.print(table.terminal())


def check(
    checkpoint: Positional[Path], /, *, length: int = 64, batch_size: int = 8, seed: int = 0
) -> None:
    """Verify on a very model that its modes agree, and say how it converges.

    Args:
        checkpoint: A run, a checkpoint, or any folder that `convert` reads.
        length: Tokens of the sequences tried.
        batch_size: Sequences.
        seed: Of the tokens.
    """
    from equilm.hf.convert import load
    from equilm.measure.check import check_model, verdict

    report = check_model(load(checkpoint), length=length, batch_size=batch_size, seed=seed)
    console.print(report.terminal())
    if not verdict(report):
        sys.exit(1)


def report(folder: Positional[Path], /, *, title: str = "", command: str = "") -> None:
    """Write FOLDER/report/index.html, its figures and tables from the Records below FOLDER.

    Args:
        folder: Holds runs: every metrics.jsonl and records.jsonl below it is read.
        title: Of the page.
        command: What to type to get the same numbers, for the page.
    """
    from equilm import record
    from equilm.report import figures, page, tables

    paths = sorted([*folder.rglob("metrics.jsonl"), *folder.rglob("records.jsonl")])
    records = record.read(paths)
    if not records:
        raise ValueError(f"{folder}: expected metrics.jsonl or records.jsonl below it, got neither")
    path = page.write_page(
        folder / "report", records, title=title or folder.resolve().name, command=command
    )
    figures.save(folder / "report", records, suffix=".png")
    for table in (tables.accuracy_table(records), tables.effort_table(records)):
        if table is not None:
            console.print(table.terminal())
    console.print(page.headline(records), path, sep="\n", highlight=False)


def convert(source: Positional[Path], target: Positional[Path], /) -> None:
    """Turn a checkpoint of the reference, or of Hugging Face's Mamba2 or Llama, into a model folder.

    Args:
        source: A folder with config.json and safetensors (or pytorch_model.bin, weights only).
        target: The folder to write.
    """
    from equilm.hf.convert import convert as convert_folder
    from equilm.hf.convert import load
    from equilm.nn.model import parameter_count

    convert_folder(source, target)
    console.print(f"{target}: {parameter_count(load(target)):,} parameters", highlight=False)


def bench(
    what: Positional[Literal["train", "ops", "decode"]] = "train",
    /,
    *,
    preset: str = "",
    json: Path | None = None,
) -> None:
    """Time a training step, the operations or a decoding sweep, after testing what is timed.

    Args:
        what: Which of them.
        preset: Only this model; sizes fit the machine otherwise.
        json: Write the Records to this file as well.
    """
    from equilm import record
    from equilm.measure.bench import bench as run_bench

    table, records = run_bench(what, preset=preset)
    console.print(table.terminal())
    if json is not None:
        record.append(json, records)


def _evaluate_run(path: Path, settings: "EvaluationConfig") -> list["Record"]:
    from equilm import config, record
    from equilm.hf.convert import load
    from equilm.measure.evaluate import evaluate as measure
    from equilm.tasks import build_task
    from equilm.train.checkpoint import newest_checkpoint, step_of
    from equilm.train.recipe import Recipe, pick_device

    run = next((one for one in (path, *path.parents) if (one / "recipe.json").exists()), None)
    if run is None:
        raise ValueError(f"{path}: expected the folder of a run, with recipe.json")
    recipe = config.load(Recipe, run / "recipe.json")
    folder = newest_checkpoint(run) if path == run else path
    if folder is None:
        raise ValueError(f"{run}: expected a checkpoint, got none yet")
    device = pick_device(recipe.device)
    records = list(
        measure(
            load(folder).to(device).eval(),
            build_task(recipe.task),
            settings,
            model=run.name,
            step=step_of(folder),
            **record.environment(device.type),
        )
    )
    record.append(run / "records.jsonl", records)
    return records


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "check": check,
    "report": report,
    "convert": convert,
    "bench": bench,
}


def main() -> None:
    """Run one command; a user's mistake is one line, not a traceback."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="equilm",
            description="Sequence models whose layers are iterated to a fixed point.",
        )
    except KeyboardInterrupt:
        errors.print("interrupted; a run goes on with: equilm train --resume --out RUN")
        sys.exit(130)
    except (ValueError, OSError) as error:
        errors.print(f"equilm: {error}", style="red", highlight=False, markup=False)
        sys.exit(2)
    except RuntimeError as error:
        # Diverged, NotConverged and what PyTorch raises for memory: a failure, not a mistake.
        errors.print(f"equilm: {error}", style="red", highlight=False, markup=False)
        sys.exit(1)
