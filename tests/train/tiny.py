"""A run of ten steps in which all that must survive an interruption matters."""

import json
from dataclasses import replace
from pathlib import Path

from equilm import record
from equilm.nn.equilibrium import EquilibriumConfig
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import ModelConfig
from equilm.solve.iterate import Solve
from equilm.tasks import WordProblemConfig
from equilm.train.checkpoint import newest_checkpoint
from equilm.train.metrics import StepReport
from equilm.train.optim import OptimConfig
from equilm.train.recipe import Recipe
from equilm.train.schedule import AdaptiveLengths, Phase
from equilm.train.trainer import Trainer

MODEL = ModelConfig(
    width=16,
    num_layers=1,
    mixer=Mamba2Config(head_width=8, state_size=4),
    dropout=0.2,
    weight_norm=True,
    equilibrium=EquilibriumConfig(solve=Solve(max_steps=8)),
)
EXPLICIT = replace(MODEL, equilibrium=None, dropout=0.0)

# The mark is low and depends on the batch: the curriculum moves on, but not at once.
TINY = Recipe(
    model=MODEL,
    task=WordProblemConfig(group="S3"),
    steps=10,
    batch_size=4,
    curriculum=AdaptiveLengths(lengths=(2, 3, 5, 6), accuracy=0.2, min_steps=2),
    phases=(
        Phase(max_steps=0, phantom_steps=2),
        Phase(length=3, max_steps=4, phantom_steps=2),
        Phase(
            share=0.7,
            max_steps=4,
            steps_per_token=0.5,
            phantom_steps=1,
            residual_weight=0.5,
            window=2,
        ),
    ),
    optim=OptimConfig(rate=1e-2),
    threads=1,
    log_every=1,
    checkpoint_every=3,
)


def finish(recipe: Recipe, folder: Path, *, resume: bool = False) -> list[StepReport]:
    """Train to the end and return what each step was like."""
    return list(Trainer(recipe, folder, resume=resume).run())


def curve(folder: Path) -> list[tuple[int | None, str, object]]:
    """Return every line of the metrics that the clock has no part in."""
    timed = ("tokens_per_second", "seconds")
    lines = record.read(folder / "metrics.jsonl")
    return [(line.step, line.name, line.value) for line in lines if line.name not in timed]


def left_behind(folder: Path) -> dict[str, bytes]:
    """Return the files of the newest checkpoint, without the clock."""
    newest = newest_checkpoint(folder)
    assert newest is not None
    files = {
        path.name: path.read_bytes() for path in newest.iterdir() if path.name != "config.json"
    }
    training = json.loads(files["training.json"])
    files["training.json"] = repr(training | {"seconds": 0}).encode()
    return {newest.name: b"", **files}
