"""The command line: `equilm train | evaluate | check | report | convert | bench`.

Only reads arguments, calls one function of the package a command, and prints. A user's mistake is
one line and exit code 2, a run that failed is exit code 1.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from equilm.config import suggest

if TYPE_CHECKING:
    from equilm.record import Record
    from equilm.report.tables import Table

console = Console()
errors = Console(stderr=True)


def _arg(metavar: str, *, name: str | None = None) -> object:
    """How an argument is shown in --help: without a default, which its text tells."""
    return arg(metavar=metavar, name=name, help_behavior_hint="")


def train(
    recipe: Annotated[Path | None, Positional, _arg("[RECIPE]")] = None,
    /,
    *,
    out: Annotated[Path | None, _arg("FOLDER")] = None,
    overrides: Annotated[tuple[str, ...], UseAppendAction, _arg("KEY=VALUE", name="set")] = (),
    resume: bool = False,
    tensorboard: bool = False,
) -> None:
    """Train a model by a recipe.

    Args:
        recipe: A .toml or .json file. Without one: the published state-tracking recipe, or the
            one the run was begun with, if it is resumed.
        out: Where recipe.json, metrics.jsonl and the checkpoints go; runs/RECIPE if left out.
        overrides: Change a setting of the recipe; may be repeated. Examples:
            model=mamba2-130m, optim.rate=1e-3, phases.1.max_steps=16.
        resume: Go on from the newest checkpoint in the folder, bit for bit.
        tensorboard: Write a TensorBoard log into the folder as well.
    """
    from equilm import config
    from equilm.nn.model import parameter_count
    from equilm.train.progress import show
    from equilm.train.recipe import Recipe
    from equilm.train.trainer import Trainer

    out = out or Path("runs") / (recipe.stem if recipe else "default")
    if recipe is None and resume:
        recipe = _recipe_of(out)
    settings = config.load(Recipe, recipe, overrides)
    trainer = Trainer(settings, out, resume=resume, tensorboard=tensorboard)
    size, step = parameter_count(trainer.model), trainer.position.step
    _say(f"{out}: {size:,} parameters on {trainer.device.type}, steps {step} to {settings.steps}")
    try:
        show(trainer.run(), name=out.resolve().name, num_steps=settings.steps, console=console)
    except KeyboardInterrupt:
        _complain(f"interrupted; go on with: equilm train --resume --out {out}")
        sys.exit(130)


def evaluate(
    runs: Annotated[tuple[Path, ...], Positional, _arg("RUN [RUN ...]")],
    /,
    *,
    lengths: tuple[int, ...] = (16, 64, 256, 1000, 2000),
    windows: tuple[int, ...] = (1,),
    batch_size: int = 16,
    seed: int = 0,
    tolerance: float = 0.01,
    max_steps: int = 64,
) -> None:
    """Measure runs on the test split of their task, and add the Records to RUN/records.jsonl.

    Args:
        runs: Folders of runs, or of checkpoints in them; one or more.
        lengths: Sequence lengths to report, in tokens.
        windows: Tokens an implicit model solves at once: 1 is sequential, 0 all of them.
        batch_size: Sequences.
        seed: Of the sequences.
        tolerance: A token is solved when one more evaluation changes it by this share.
        max_steps: Evaluations a token may take.
    """
    from equilm.measure.evaluate import EvaluationConfig
    from equilm.train.runs import evaluate_run

    if not runs:
        raise ValueError("runs: expected one folder or more, got none")
    settings = EvaluationConfig(
        lengths=lengths,
        windows=windows,
        batch_size=batch_size,
        seed=seed,
        tolerance=tolerance,
        max_steps=max_steps,
    )
    records = []
    for run in runs:
        with _waiting(f"evaluating {run}"):
            records += evaluate_run(run, settings)
    for table in _tables(records):
        console.print(table.terminal())


def check(
    checkpoint: Annotated[Path, Positional, _arg("FOLDER")],
    /,
    *,
    length: int = 32,
    batch_size: int = 8,
    seed: int = 0,
) -> None:
    """Verify on a model itself that its modes agree, and say how it converges; exit 1 if it fails.

    Args:
        checkpoint: A run, a checkpoint, or any folder that `convert` reads.
        length: Tokens of the sequences tried.
        batch_size: Sequences.
        seed: Of the tokens.
    """
    from equilm.hf.convert import load
    from equilm.measure.check import as_table, check_model

    with _waiting(f"checking {checkpoint}: a minute or more where it converges slowly"):
        findings = check_model(load(checkpoint), length=length, batch_size=batch_size, seed=seed)
    console.print(as_table(findings).terminal())
    if any(finding.ok is False for finding in findings):
        sys.exit(1)


def report(
    folder: Annotated[Path, Positional, _arg("FOLDER")],
    /,
    *,
    title: Annotated[str, _arg("TEXT")] = "",
    command: Annotated[str, _arg("TEXT")] = "",
) -> None:
    """Write FOLDER/report/index.html, its figures and tables from the Records below FOLDER.

    Args:
        folder: Holds runs: every metrics.jsonl and records.jsonl below it is read.
        title: Of the page; the folder's name if left out.
        command: What to type to get the same numbers, for the page to say.
    """
    from equilm import record
    from equilm.report import figures, page

    paths = sorted([*folder.rglob("metrics.jsonl"), *folder.rglob("records.jsonl")])
    records = record.read(paths)
    if not records:
        raise ValueError(f"{folder}: expected metrics.jsonl or records.jsonl below it, got neither")
    path = page.write_page(
        folder / "report", records, title=title or folder.resolve().name, command=command
    )
    figures.save(folder / "report", records, suffix=".png")
    written = [table.markdown() for table in _tables(records)]
    (folder / "report" / "tables.md").write_text("\n".join(written), encoding="utf-8")
    _say(page.headline(records))
    _say(str(path))


def convert(
    source: Annotated[Path, Positional, _arg("SOURCE")],
    target: Annotated[Path, Positional, _arg("TARGET")],
    /,
) -> None:
    """Turn a checkpoint of others into a model folder.

    Args:
        source: A folder of the public reference, or a Mamba2 or Llama of Hugging Face's, with
            config.json and model.safetensors (or pytorch_model.bin, of which weights only).
        target: The folder to write.
    """
    from equilm.hf.convert import convert as convert_folder
    from equilm.hf.convert import load
    from equilm.nn.model import parameter_count

    convert_folder(source, target)
    _say(f"{target}: {parameter_count(load(target)):,} parameters")


def bench(
    what: Positional[Literal["train", "ops", "decode"]] = "train",
    /,
    *,
    preset: Annotated[str, _arg("NAME")] = "",
    json: Annotated[Path | None, _arg("FILE")] = None,
) -> None:
    """Time a training step, the operations or a decoding sweep, after testing what is timed.

    Args:
        what: Which of them.
        preset: Time this published model alone; otherwise models that fit the machine.
        json: Append the Records to this file as well.
    """
    from equilm import record
    from equilm.measure.bench import bench as run_bench

    table, records = run_bench(what, only=preset)
    console.print(table.terminal())
    if json is not None:
        record.append(json, records)


def _recipe_of(run: Path) -> Path:
    if not (run / "recipe.json").exists():
        raise ValueError(f"{run}: expected a run to resume, with recipe.json, got none")
    return run / "recipe.json"


def _tables(records: list["Record"]) -> list["Table"]:
    from equilm.report.tables import accuracy_table, effort_table

    return [table for table in (accuracy_table(records), effort_table(records)) if table]


def _waiting(words: str) -> AbstractContextManager[object]:
    """Say what is being waited for: a spinner in a terminal, a line elsewhere."""
    if console.is_terminal:
        return console.status(words)
    _say(words)
    return nullcontext()


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _complain(message: str) -> None:
    for line in message.splitlines():
        errors.print(f"equilm: {line}", style="red", highlight=False, markup=False, soft_wrap=True)


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
        _check_command(sys.argv[1:2])
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="equilm",
            description="Sequence models whose layers are iterated to a fixed point.",
            config=(FlagCreatePairsOff,),
        )
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(130)
    except (ValueError, OSError) as error:
        _complain(str(error))
        sys.exit(2)
    except RuntimeError as error:
        # Diverged, NotConverged and what PyTorch raises for memory: a failure, not a mistake.
        _complain(str(error))
        sys.exit(1)


def _check_command(given: list[str]) -> None:
    """Refuse a word that is no command; everything else is for the parser to judge."""
    for word in given:
        if word not in COMMANDS and not word.startswith("-"):
            raise ValueError(f"{word}: unknown command; {suggest(word, COMMANDS)}")
