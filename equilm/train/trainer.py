"""The training loop, on one screen: task → batch → model → loss → step → report.

    for report in Trainer(recipe, folder).run(): ...

What changes the numbers is a function of the step or is saved, so a run that was killed anywhere
and resumed gives the same numbers as one that was not. The model is single-device code and knows
nothing of this file. Read `schedule.py`, `checkpoint.py` and `metrics.py` for the parts.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equilm import config, record
from equilm.config import ConfigError
from equilm.nn.capture import Capture
from equilm.nn.equilibrium import Equilibrium, observed
from equilm.nn.model import LanguageModel, parameter_count
from equilm.ops.cross_entropy import CrossEntropy
from equilm.record import Record
from equilm.tasks import IGNORE, build_task
from equilm.train import checkpoint
from equilm.train.checkpoint import Position
from equilm.train.metrics import StepReport, opened, summary_writer
from equilm.train.optim import build_optimizer, clip_gradients, set_rate
from equilm.train.recipe import Recipe, use_device
from equilm.train.schedule import at_phase

MAX_SKIPPED = 10  # steps without a finite gradient in a row before giving up


class Diverged(RuntimeError):
    """The gradient was not finite for many steps in a row."""


class Trainer:
    """One run of a recipe in one folder.

    Args:
        recipe: What to do.
        folder: Of the run; made if it is not there.
        resume: Whether to go on from the newest checkpoint in it (from the start if there is
            none). Otherwise the folder must not hold a run.
        tensorboard: Whether to write a TensorBoard log too.

    Raises:
        ConfigError: If the folder holds another run, or the recipe does not fit together.
        CheckpointError: If the newest checkpoint does not load; names the one before.
        ValueError: If TensorBoard is asked for and not installed.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, *, resume: bool = False, tensorboard: bool = False
    ) -> None:
        self.recipe, self.folder = recipe, folder
        self.writer = summary_writer() if tensorboard else None
        self.task = build_task(recipe.task)
        self.device = use_device(recipe.device, threads=recipe.threads)
        generator = torch.Generator().manual_seed(recipe.seed)
        self.model = LanguageModel(recipe.model_for(self.task), generator=generator)
        self.model.to(self.device).train()
        self.model.recompute = recipe.recompute
        if recipe.capture and self.device.type == "cuda":
            self.model.capture = Capture(self.model.core)
        self.optimizer = build_optimizer(self.model, recipe.optim)
        self.about: dict[str, Any] = {
            "model": folder.resolve().name,
            "task": self.task.name,
            "seed": recipe.seed,
            **record.environment(self.device.type),
        }
        self.position = self._claim(resume)

    def run(self) -> Iterator[StepReport]:
        """Train to the last step, and yield what each step was like.

        Raises:
            Diverged: After ten steps in a row without a finite gradient.
            CheckpointError: If a checkpoint cannot be written.
            OSError: If the metrics cannot be written.
        """
        recipe = self.recipe
        with opened(self.folder, self.writer, step=self.position.step) as metrics:
            while self.position.step < recipe.steps:
                report = self._take_step()
                at_end = report.step == recipe.steps
                if report.step % recipe.log_every == 0 or at_end:
                    metrics.write(report.records(self.about))
                if at_end:
                    metrics.write(self._summary())
                if report.step % recipe.checkpoint_every == 0 or at_end:
                    self._save()
                yield report

    def _take_step(self) -> StepReport:
        began = time.perf_counter()
        recipe, here = self.recipe, self.position
        length = recipe.curriculum.lengths[here.place.level]
        tokens_BT, targets_BT = self._batch(length)
        found, sweeps = self._forward(tokens_BT, targets_BT)
        loss = found.loss_sum / found.num_targets
        rate, grad_norm = self._descend(loss)
        accuracy, step = (found.num_correct / found.num_targets).item(), here.step + 1
        took = time.perf_counter() - began
        self.position = Position(
            step=step,
            place=recipe.curriculum.advance(
                here.place, accuracy=accuracy, share=step / recipe.steps
            ),
            skipped=0 if math.isfinite(grad_norm) else here.skipped + 1,
            seconds=here.seconds + took,
        )
        self._check_finite()
        return StepReport(
            step=step,
            loss=loss.item(),
            accuracy=accuracy,
            length=length,
            sweeps=sweeps,
            learning_rate=rate,
            grad_norm=grad_norm,
            tokens_per_second=tokens_BT.numel() / took,
            seconds=self.position.seconds,
        )

    def _batch(self, length: int) -> tuple[Tensor, Tensor]:
        batch = self.task.batch(
            split="train",
            length=length,
            batch_size=self.recipe.batch_size,
            seed=self.recipe.seed,
            index=self.position.step,
        )
        tokens_BT, targets_BT = (part.to(self.device) for part in batch)
        return tokens_BT, targets_BT

    def _forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> tuple[CrossEntropy, float]:
        """Return the loss, and the sweeps a solve."""
        recipe, core = self.recipe, self.model.core
        if isinstance(core, Equilibrium) and self.model.config.equilibrium is not None:
            # From the model's own settings each time, so that no step depends on the one before.
            depth = at_phase(
                self.model.config.equilibrium,
                recipe.phases,
                share=self.position.step / recipe.steps,
                length=tokens_BT.shape[1],
            )
            core.solve, core.gradient = depth.solve, depth.gradient
        # Dropout draws from here; a function of the step survives any interruption.
        torch.manual_seed(recipe.seed * 1_000_003 + self.position.step)
        uses_bf16 = recipe.precision == "bf16" and self.device.type == "cuda"
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=uses_bf16),
            observed(self.model) as solutions,
        ):
            loss = self.model.loss(tokens_BT, targets_BT, ignore=IGNORE)
        return loss, sum(found.sweeps for found in solutions) / max(1, len(solutions))

    def _descend(self, loss: Tensor) -> tuple[float, float]:
        """Take the optimizer step, if the gradient is finite; return its rate and its norm."""
        optim, step = self.recipe.optim, self.position.step
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        rate = optim.rate * optim.schedule.at(step, self.recipe.steps)
        set_rate(self.optimizer, rate)
        grad_norm = clip_gradients(self.model, optim.clip).item()
        if math.isfinite(grad_norm):
            self.optimizer.step()
        return rate, grad_norm

    def _check_finite(self) -> None:
        skipped = self.position.skipped
        if skipped >= MAX_SKIPPED:
            raise Diverged(
                f"step {self.position.step}: the gradient was not finite for {skipped} steps in a "
                "row; lower optim.rate or optim.clip"
            )

    def _claim(self, resume: bool) -> Position:
        """Take the folder for this recipe, and return where to go on."""
        path, metrics = self.folder / "recipe.json", self.folder / "metrics.jsonl"
        begun = path.exists() or metrics.exists() or (self.folder / "checkpoints").exists()
        if begun and not resume:
            raise ConfigError(
                f"{self.folder}: holds a run already; go on with --resume, or choose another --out"
            )
        if begun and config.load(Recipe, path) != self.recipe:
            raise ConfigError(
                f"{self.folder}: was begun with another recipe; resume it without naming one, and "
                "without --set"
            )
        position = checkpoint.load_newest(self.folder, self.model, self.optimizer)
        self.folder.mkdir(parents=True, exist_ok=True)
        config.save(self.recipe, path)
        record.truncate(metrics, position.step)
        checkpoint.delete_old(self.folder, keep=self.recipe.keep_checkpoints)
        return position

    def _save(self) -> None:
        checkpoint.save_checkpoint(self.folder, self.model, self.optimizer, self.position)
        checkpoint.delete_old(self.folder, keep=self.recipe.keep_checkpoints)

    def _summary(self) -> Iterator[Record]:
        totals = [
            ("parameters", float(parameter_count(self.model)), "count"),
            ("seconds", self.position.seconds, "s"),
        ]
        for name, value, unit in totals:
            yield Record(name=name, value=value, unit=unit, step=self.position.step, **self.about)
