"""Commands about runs: train, evaluate, report. Read `models.py` next."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, UseAppendAction

from equilm.cli.terminal import argument, complain, console, say, waiting

if TYPE_CHECKING:
    from equilm.measure.evaluate import EvaluationConfig
    from equilm.measure.language_config import LanguageConfig
    from equilm.record import Record
    from equilm.report.tables import Table
    from equilm.train.trainer import Trainer


def train(
    recipe: Annotated[Path | None, Positional, argument("[RECIPE]")] = None,
    /,
    *,
    out: Annotated[Path | None, argument("FOLDER")] = None,
    overrides: Annotated[tuple[str, ...], UseAppendAction, argument("KEY=VALUE", name="set")] = (),
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
    from equilm.train.recipe import Recipe
    from equilm.train.trainer import Trainer

    out = out or Path("runs") / (recipe.stem if recipe else "default")
    if recipe is None and resume:
        recipe = _recipe_of(out)
    settings = config.load(Recipe, recipe, overrides)
    trainer = Trainer(settings, out, resume=resume, tensorboard=tensorboard)
    size, step = parameter_count(trainer.model), trainer.position.step
    ranks = trainer.ranks
    where = trainer.device.type + (f" × {ranks.size}" if ranks.size > 1 else "")
    console.quiet = not ranks.is_first
    say(f"{out}: {size:,} parameters on {where}, steps {step} to {settings.steps}")
    _run_through(trainer, out)


def evaluate(
    runs: Annotated[tuple[Path, ...], Positional, argument("RUN [RUN ...]")],
    /,
    *,
    lengths: tuple[int, ...] = (16, 64, 256, 1000, 2000),
    windows: tuple[int, ...] = (1,),
    batch_size: int = 16,
    seed: int = 0,
    tolerance: float = 0.01,
    max_steps: int = 64,
    attractors: bool = False,
    split: Annotated[Literal["train", "valid", "test"], argument("SPLIT")] = "test",
    precision: Literal["float32", "bf16"] = "float32",
    text: Annotated[tuple[Path, ...], argument("PATH [PATH ...]")] = (),
    sweeps: Annotated[tuple[int, ...], argument("INT [INT ...]")] = (),
    harness: Annotated[str, argument("TASK[,TASK]")] = "",
    include: Annotated[Path | None, argument("FOLDER")] = None,
    limit: Annotated[int | None, argument("INT")] = None,
    tokenizer: Annotated[str, argument("NAME")] = "",
) -> None:
    """Measure runs on the test split of their task, and add the Records to RUN/records.jsonl.

    With --text or --harness: measure language models, of any folder that `convert` reads, instead.

    Args:
        runs: Folders of runs, or of checkpoints in them; one or more.
        lengths: Sequence lengths to report, in tokens.
        windows: Tokens an implicit model solves at once: 1 is sequential, 0 all of them.
        batch_size: Sequences.
        seed: Of the sequences.
        tolerance: A token is solved when one more evaluation changes it by this share.
        max_steps: Evaluations a token may take; all of them together in a window of 0.
        attractors: Enumerate the states that tokens lead between first, and sweep all tokens at
            once from what these tell; the window is for what that leaves unsolved.
        split: Of the task, or of the prepared folders among --text.
        precision: Compute type on a GPU; a CPU always computes in float32.
        text: Files or folders of text, as `equilm data prepare` reads them (.txt, .jsonl,
            .parquet, packed or not), or what it wrote, of which the split.
        sweeps: Evaluations a token to try on the shortest of the lengths, instead of solving; one
            by one and all at once, where these windows are.
        harness: Tasks of lm-evaluation-harness.
        include: A folder of task files (.yaml) of the harness; then no others are known, and
            nothing is fetched.
        limit: Items of each task, the first ones; all if left out.
        tokenizer: A folder, "bytes", or "ids", where the text of a token is its number. If left
            out: the model's own, or "ids" if it has none.
    """
    from equilm.measure.evaluate import EvaluationConfig
    from equilm.measure.language_config import LanguageConfig

    if not runs:
        raise ValueError("runs: expected one folder or more, got none")
    settings = EvaluationConfig(
        lengths=lengths,
        windows=windows,
        batch_size=batch_size,
        seed=seed,
        tolerance=tolerance,
        max_steps=max_steps,
        split=split,
        precision=precision,
        attractors=attractors,
    )
    language = LanguageConfig(
        text=text,
        sweeps=sweeps,
        harness=harness,
        include=include,
        limit=limit,
        tokenizer=tokenizer,
    )
    for table in _tables(_evaluated(runs, settings, language)):
        console.print(table.terminal())


def report(
    folder: Annotated[Path, Positional, argument("FOLDER")],
    /,
    *,
    title: Annotated[str, argument("TEXT")] = "",
    command: Annotated[str, argument("TEXT")] = "",
) -> None:
    """Write FOLDER/report/index.html, its figures and tables from the Records below FOLDER.

    Args:
        folder: Holds runs: every metrics.jsonl and records.jsonl below it is read.
        title: Of the page; the folder's name if left out.
        command: What to type to get the same numbers, for the page to say.
    """
    from equilm import record
    from equilm.report import figures, page, select

    paths = sorted([*folder.rglob("metrics.jsonl"), *folder.rglob("records.jsonl")])
    records = select.implicit_first(record.read(paths))
    if not records:
        raise ValueError(f"{folder}: expected metrics.jsonl or records.jsonl below it, got neither")
    path = page.write_page(
        folder / "report", records, title=title or folder.resolve().name, command=command
    )
    figures.save(folder / "report", records, suffix=".png")
    written = [table.markdown() for table in _tables(records)]
    (folder / "report" / "tables.md").write_text("\n".join(written), encoding="utf-8")
    say(page.headline(records))
    say(str(path))


def _evaluated(
    runs: tuple[Path, ...], settings: "EvaluationConfig", language: "LanguageConfig"
) -> list["Record"]:
    from equilm.measure.language import evaluate_folder
    from equilm.train.runs import evaluate_run, find_run

    of_folders = bool(language.text or language.harness)
    if settings.attractors and of_folders:
        raise ValueError("attractors: expected runs of a task, got text or tasks of the harness")
    for run in () if of_folders else runs:
        find_run(run)
    records = []
    for run in runs:
        with waiting(f"evaluating {run}"):
            if of_folders:
                records += evaluate_folder(run, settings, language)
            else:
                records += evaluate_run(run, settings)
    return records


def _run_through(trainer: "Trainer", out: Path) -> None:
    """Train to the end, or to an interrupt: the first keeps the step, a second does not."""
    from equilm.train import parallel
    from equilm.train.interrupt import first_interrupt
    from equilm.train.progress import show

    def stop() -> None:
        complain("interrupted; a checkpoint follows the step (Ctrl-C again: stop at once)")
        trainer.stop()

    num_steps, again = trainer.recipe.steps, f"go on with: equilm train --resume --out {out}"
    try:
        with first_interrupt(stop) if trainer.ranks.size == 1 else nullcontext():
            show(trainer.run(), name=out.resolve().name, num_steps=num_steps, console=console)
        parallel.leave()
    except KeyboardInterrupt:
        complain(f"interrupted; {again}")
        sys.exit(130)
    if not trainer.recipe.ends(trainer.position.step, trainer.position.place):
        complain(f"stopped after step {trainer.position.step}; {again}")
        sys.exit(130)


def _recipe_of(run: Path) -> Path:
    if not (run / "recipe.json").exists():
        raise ValueError(f"{run}: expected a run to resume, with recipe.json, got none")
    return run / "recipe.json"


def _tables(records: list["Record"]) -> list["Table"]:
    from equilm.report.language import language_tables
    from equilm.report.speed import speed_tables
    from equilm.report.tables import accuracy_table, effort_table
    from equilm.report.traffic import traffic_tables

    found = (
        accuracy_table(records),
        effort_table(records),
        *language_tables(records),
        *speed_tables(records),
        *traffic_tables(records),
    )
    return [table for table in found if table]
