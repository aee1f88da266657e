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

import torch

from equilm import config, record
from equilm.config import ConfigError
from equilm.nn.equilibrium import Equilibrium, EquilibriumConfig, observed
from equilm.nn.model import LanguageModel, parameter_count
from equilm.record import Record
from equilm.tasks import IGNORE, build_task, cross_entropy_sum
from equilm.train import checkpoint
from equilm.train.checkpoint import Position
from equilm.train.metrics import Metrics, StepReport, opened
from equilm.train.optim import build_optimizer, clip_gradients, set_rate
from equilm.train.recipe import Recipe, pick_device
from equilm.train.schedule import Place, at_phase

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
        ConfigError: If the folder holds another run.
        CheckpointError: If the checkpoint does not load.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, *, resume: bool = False, tensorboard: bool = False
    ) -> None:
        self.recipe, self.folder, self.tensorboard = recipe, folder, tensorboard
        self.task = build_task(recipe.task)
        self.device = pick_device(recipe.device)
        generator = torch.Generator().manual_seed(recipe.seed)
        self.model = LanguageModel(recipe.model_for(self.task), generator=generator)
        self.model.to(self.device).train()
        self.optimizer = build_optimizer(self.model, recipe.optim)
        self.about = {
            "model": folder.name,
            "task": self.task.name,
            "seed": recipe.seed,
            **record.environment(self.device.type),
        }
        self.step, self.place, self.seconds, self.skipped = 0, Place(), 0.0, 0
        self._claim(resume)

    def run(self) -> Iterator[StepReport]:
        """Train to the last step, and yield what each step was like.

        Raises:
            Diverged: After ten steps in a row without a finite gradient.
            CheckpointError: If a checkpoint cannot be written.
        """
        recipe = self.recipe
        with opened(self.folder, tensorboard=self.tensorboard) as metrics:
            while self.step < recipe.steps:
                report = self._take_step()
                if self.step % recipe.log_every == 0 or self.step == recipe.steps:
                    metrics.write(report.records(**self.about))
                if self.step == recipe.steps:
                    self._sum_up(metrics)
                if self.step % recipe.checkpoint_every == 0 or self.step == recipe.steps:
                    self._save()
                yield report

    def _take_step(self) -> StepReport:
        began = time.perf_counter()
        recipe, share = self.recipe, self.step / self.recipe.steps
        length = recipe.curriculum.lengths[self.place.index]
        self._set_depth(share, length)
        batch = self.task.batch(
            split="train",
            length=length,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            index=self.step,
        )
        tokens_BT, targets_BT = (part.to(self.device) for part in batch)
        # Dropout draws from here; a function of the step survives any interruption.
        torch.manual_seed(recipe.seed * 1_000_003 + self.step)
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=self._uses_bf16()),
            observed(self.model) as solutions,
        ):
            logits_BTV, _ = self.model(tokens_BT)
        loss_sum, count = cross_entropy_sum(logits_BTV, targets_BT)
        loss = loss_sum / count
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        rate = recipe.optim.rate * recipe.optim.schedule.at(self.step, recipe.steps)
        set_rate(self.optimizer, rate)
        grad_norm = clip_gradients(self.model, recipe.optim.clip).item()
        self._apply(grad_norm)
        correct = (logits_BTV.argmax(-1) == targets_BT).sum() / (targets_BT != IGNORE).sum()
        accuracy = correct.item()
        self.step += 1
        self.place = recipe.curriculum.advance(
            self.place, accuracy=accuracy, share=self.step / recipe.steps
        )
        took = time.perf_counter() - began
        self.seconds += took
        return StepReport(
            step=self.step,
            loss=loss.item(),
            accuracy=accuracy,
            length=length,
            sweeps=sum(found.sweeps for found in solutions) / max(1, len(solutions)),
            learning_rate=rate,
            grad_norm=grad_norm,
            tokens_per_second=tokens_BT.numel() / took,
            seconds=self.seconds,
        )

    def _set_depth(self, share: float, length: int) -> None:
        for part in self.model.modules():
            if isinstance(part, Equilibrium):
                base = EquilibriumConfig(solve=part.solve, gradient=part.gradient)
                depth = at_phase(base, self.recipe.phases, share=share, length=length)
                part.solve, part.gradient = depth.solve, depth.gradient

    def _apply(self, grad_norm: float) -> None:
        if math.isfinite(grad_norm):
            self.optimizer.step()
            self.skipped = 0
            return
        self.skipped += 1
        if self.skipped >= MAX_SKIPPED:
            raise Diverged(
                f"step {self.step}: the gradient was not finite for {self.skipped} steps in a row; "
                "lower optim.rate or optim.clip"
            )

    def _uses_bf16(self) -> bool:
        return self.recipe.precision == "bf16" and self.device.type == "cuda"

    def _claim(self, resume: bool) -> None:
        """Take the folder for this recipe, and go on from its newest checkpoint if asked to."""
        path = self.folder / "recipe.json"
        if path.exists() and not resume:
            raise ConfigError(
                f"{self.folder}: holds a run already; go on with --resume, or choose another --out"
            )
        if path.exists() and config.load(Recipe, path) != self.recipe:
            raise ConfigError(
                f"{self.folder}: was begun with another recipe; resume it without naming one"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        config.save(self.recipe, path)
        newest = checkpoint.newest_checkpoint(self.folder)
        if newest is not None:
            position = checkpoint.load_checkpoint(newest, self.model, self.optimizer)
            self.step, self.place = position.step, position.place
            self.seconds = position.seconds
        record.truncate(self.folder / "metrics.jsonl", self.step)

    def _save(self) -> None:
        position = Position(step=self.step, place=self.place, seconds=self.seconds)
        checkpoint.save_checkpoint(
            self.folder, self.model, self.optimizer, position, keep=self.recipe.keep_checkpoints
        )

    def _sum_up(self, metrics: Metrics) -> None:
        totals = [
            ("parameters", float(parameter_count(self.model)), "count"),
            ("seconds", self.seconds, "s"),
        ]
        metrics.write(
            Record(name=name, value=value, unit=unit, step=self.step, **self.about)
            for name, value, unit in totals
        )
