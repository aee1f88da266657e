"""A figure as runs to train, what to measure on each, and what to draw.

Only what is missing is done:

    out/runs/seed-0/GROUP/RUN/      a run of the trainer, and `NAME.jsonl` measured on it
    out/NAME/                       the drawings, `tables.md`, and `records.jsonl` behind them

What was measured is enough to draw again: checkpoints may be deleted then. Runs are shared by
figures, so a name stands for one recipe. Read `figures.py` next.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from equilm import config, record
from equilm.hf.convert import load
from equilm.nn.model import LanguageModel
from equilm.record import Record
from equilm.report.plot import Plot
from equilm.report.tables import Table
from equilm.tasks import build_task
from equilm.train.checkpoint import newest_checkpoint, place_of, step_of
from equilm.train.recipe import Recipe, use_device
from equilm.train.trainer import Trainer


class Measurement(Protocol):
    """What is measured on a trained model: a frozen dataclass, so that it tells what it did."""

    @property
    def records(self) -> Callable[..., Iterable[Record]]:
        """(model, task) → Records."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A model to train, once a seed.

    Args:
        name: Of the model in tables and drawings.
        group: A folder that runs of one name are told apart by, such as "length-8".
        recipe: Its seed is not used.
        measures: What the figure needs of it.
        about: Fields of the Records that leave them open, such as {"row": 4} for four layers.
    """

    name: str
    group: str = "main"
    recipe: Recipe
    measures: tuple[Measurement, ...]
    about: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What `equilm reproduce NAME` makes.

    Args:
        name: Of the figure.
        runs: All of them.
        seeds: Of each run.
        draw: Drawings, each None where its Records are missing.
        tables: The same in words.
        tolerates: What a run may fail with and leave the others to go on; its Record is named
            "failed", with the group as `part` and the failure as `task`.
    """

    name: str
    runs: tuple[Run, ...]
    seeds: tuple[int, ...]
    draw: tuple[Callable[[list[Record]], Plot | None], ...]
    tables: tuple[Callable[[list[Record]], Table | None], ...] = ()
    tolerates: tuple[type[Exception], ...] = ()


# (trainer, what it trains) → trained
Watch = Callable[[Trainer, str], None]


def reproduce(
    figure: Figure, out: Path, *, watch: Watch | None, say: Callable[[str], None]
) -> list[Path]:
    """Train and measure what is missing, and draw; what is done by then if it is interrupted.

    Args:
        figure: What to make.
        out: The folder; what an earlier call left there is used.
        watch: Runs a trainer to its end; `None` trains nothing, and draws what is there.
        say: Told what is done.

    Returns:
        The files written; none if nothing was measured.

    Raises:
        ConfigError: If a run there was begun with another recipe.
    """
    records: list[Record] = []
    written: list[Path] = []
    missing = 0
    runs = [(run, seed) for seed in figure.seeds for run in figure.runs]
    try:
        for done, (run, seed) in enumerate(runs):
            folder = out / "runs" / f"seed-{seed}" / run.group / run.name
            if watch is not None or folder.exists():
                say(f"{figure.name} {done + 1}/{len(runs)}: {folder}")
            found = _done(figure, run, seed, folder, watch)
            missing += not found
            records += found
        if missing:
            say(f"{figure.name}: {missing} of {len(runs)} runs are missing or not finished")
    finally:
        written += _write(figure, out / figure.name, records)
    return written


def _done(figure: Figure, run: Run, seed: int, folder: Path, watch: Watch | None) -> list[Record]:
    """The Records of a run, or that it failed; none if it is missing and is not to be trained."""
    failure = folder / "failed.jsonl"
    recipe = replace(run.recipe, seed=seed)
    if (known := _known(run, recipe, folder, figure.name)) is not None:
        return known
    if watch is None and not _is_finished(recipe, folder):
        return record.read(failure) if failure.exists() else []
    try:
        if watch is not None:
            _train(recipe, folder, watch)
        failure.unlink(missing_ok=True)
        return _measured(run, seed, folder, figure.name)
    except config.ConfigError:
        raise  # the folder holds another run, which is no property of this one
    except figure.tolerates as error:
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        failed = Record(
            name="failed",
            value=1.0,
            unit="1",
            model=run.name,
            part=run.group,
            task=told,
            seed=seed,
        )
        failure.unlink(missing_ok=True)
        record.append(failure, [failed])
        return [failed]


def _is_finished(recipe: Recipe, folder: Path) -> bool:
    newest, path = newest_checkpoint(folder), folder / "recipe.json"
    if newest is None or not recipe.ends(step_of(newest) or 0, place_of(newest)):
        return False
    return config.load(Recipe, path) == recipe


def _train(recipe: Recipe, folder: Path, watch: Watch) -> None:
    if not _is_finished(recipe, folder):
        watch(Trainer(recipe, folder, resume=True), folder.name)


def _known(run: Run, recipe: Recipe, folder: Path, name: str) -> list[Record] | None:
    """What an earlier call measured alike on a run of this recipe, its checkpoints gone or not."""
    path, told, begun = (folder / file for file in (f"{name}.jsonl", f"{name}.json", "recipe.json"))
    if not (path.exists() and told.exists() and begun.exists()):
        return None
    alike = told.read_text(encoding="utf-8") == _plan(run)
    return record.read(path) if alike and config.load(Recipe, begun) == recipe else None


def _measured(run: Run, seed: int, folder: Path, name: str) -> list[Record]:
    """The Records of a run for a figure, kept for later calls."""
    path, told = folder / f"{name}.jsonl", folder / f"{name}.json"
    records = list(_measure(run, seed, folder))
    told.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    record.append(path, records)
    # Last, so that an interrupted call measures again.
    told.write_text(_plan(run), encoding="utf-8")
    return records


def _plan(run: Run) -> str:
    measures = [{type(one).__name__: config.encode(one)} for one in run.measures]
    return json.dumps({"measures": measures, "about": dict(run.about)}, indent=2)


def _measure(run: Run, seed: int, folder: Path) -> Iterator[Record]:
    checkpoint = newest_checkpoint(folder)
    assert checkpoint is not None
    device = use_device(run.recipe.device, threads=run.recipe.threads)
    model: LanguageModel = load(checkpoint, device=device)
    task = build_task(run.recipe.task)
    about: dict[str, Any] = {
        "model": run.name,
        "seed": seed,
        "step": step_of(checkpoint),
        **record.environment(device.type),
    }
    for measure in run.measures:
        for one in measure.records(model, task):
            # A row of a series stays the row that it is.
            told = {key: run.about[key] for key in run.about if getattr(one, key) is None}
            yield replace(one, **{**about, **told})


def _write(figure: Figure, folder: Path, records: list[Record]) -> list[Path]:
    if not records:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "records.jsonl"]
    written[0].unlink(missing_ok=True)
    record.append(written[0], records)
    for draw in figure.draw:
        plot = draw(records)
        for suffix in (".png", ".svg") if plot is not None else ():
            written.append(folder / f"{plot.name}{suffix}")  # type: ignore[union-attr]
            plot.save(written[-1])  # type: ignore[union-attr]
    tables = [table for make in figure.tables if (table := make(records)) is not None]
    if tables:
        written.append(folder / "tables.md")
        text = "\n".join(f"{table.title}\n\n{table.markdown()}" for table in tables)
        written[-1].write_text(text, encoding="utf-8")
    return written
