"""The training loop, on one screen: task → batch → model → loss → step → report.

    for report in Trainer(recipe, folder).run(): ...

What changes the numbers is a function of the step or is saved, so a run killed anywhere and resumed
gives the same numbers as one that was not. The model knows nothing of this file. Read
`schedule.py`, `checkpoint.py` and `metrics.py` for the parts, `equilm/decode/engine.py` next.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from equilm import config, record, tree
from equilm.config import ConfigError
from equilm.nn.capture import Capture
from equilm.nn.equilibrium import Equilibrium
from equilm.nn.model import LanguageModel, parameter_count
from equilm.record import Record
from equilm.tasks import Batch, build_task
from equilm.train import carry, checkpoint, parallel, sharded
from equilm.train.carry import Carried
from equilm.train.checkpoint import Position
from equilm.train.gradient import Found, accumulate
from equilm.train.metrics import StepReport, opened, summary_writer
from equilm.train.optim import build_optimizer, clip_gradients, set_rate
from equilm.train.recipe import Recipe
from equilm.train.schedule import Phase, at_phase, phase_at

RANK_SEED = 2_654_435_761  # between the dropout of two ranks, odd and far from any step count
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
        self.task = build_task(recipe.task)
        self.ranks = parallel.join(recipe.device, threads=recipe.threads)
        self.device = self.ranks.device
        self.writer = summary_writer() if tensorboard and self.ranks.is_first else None
        self.ranks.rows(recipe.batch_size)
        if any(phase.carry is not None for phase in recipe.phases):
            self._check_carry()
        self._check_data()
        generator = torch.Generator().manual_seed(recipe.seed)
        self.model = LanguageModel(recipe.model_for(self.task), generator=generator)
        self.model.to(self.device).train()
        self.model.recompute = recipe.recompute
        self.model.label_smoothing = recipe.label_smoothing
        self.model.reset_at(self.task.reset_token)
        parallel.spread(self.model, self.ranks, recipe.shard)
        # Parameters that are gathered anew do not lie where a graph would read them.
        if recipe.capture and self.device.type == "cuda" and not parallel.is_spread(self.model):
            self.model.capture = Capture(self.model.core)
        self.optimizer = build_optimizer(self.model, recipe.optim)
        self.about: dict[str, Any] = {
            "model": folder.resolve().name,
            "task": self.task.name,
            "seed": recipe.seed,
            **record.environment(self.device.type),
        }
        self.position = self._claim(resume)
        self.stopping = False
        self.saver = None
        if parallel.is_spread(self.model):
            self.saver = sharded.Saver(is_first=self.ranks.is_first)

    def run(self) -> Iterator[StepReport]:
        """Train to the last step, `until` or `stop`, and yield what each step was like.

        Raises:
            Diverged: After ten steps in a row without a finite gradient.
            CheckpointError: If a checkpoint cannot be written.
            OSError: If the metrics cannot be written.
        """
        recipe = self.recipe
        with opened(self.folder, self.writer, step=self.position.step) as metrics:
            while not recipe.ends(self.position.step, self.position.place):
                report = self._take_step()
                at_end = recipe.ends(report.step, self.position.place)
                if self.ranks.is_first and (report.step % recipe.log_every == 0 or at_end):
                    metrics.write(report.records(self.about))
                if self.ranks.is_first and at_end:
                    metrics.write(self._summary())
                ends = at_end or self.stopping
                if report.step % recipe.checkpoint_every == 0 or ends:
                    self._save()
                self.publish(wait=ends)
                yield report
                if ends:
                    return

    def stop(self) -> None:
        """Let the run end after its step, with a checkpoint; of one process alone."""
        self.stopping = self.ranks.size == 1

    def _take_step(self) -> StepReport:
        began = time.perf_counter()
        recipe, here = self.recipe, self.position
        length = recipe.curriculum.lengths[here.place.level]
        batch = self._batch(length)
        self._go_deep(length)
        # Dropout draws from here; a function of the step survives any interruption.
        torch.manual_seed(recipe.seed * 1_000_003 + here.step + self.ranks.rank * RANK_SEED)
        self.optimizer.zero_grad(set_to_none=True)
        found, carried = self._learn(batch)
        rate, grad_norm = self._descend()
        step = here.step + 1
        took = time.perf_counter() - began
        self.position = Position(
            step=step,
            place=recipe.curriculum.advance(
                here.place, accuracy=found.accuracy, share=step / recipe.steps
            ),
            skipped=0 if math.isfinite(grad_norm) else here.skipped + 1,
            seconds=here.seconds + took,
            carried=carried,
        )
        self._check_finite()
        return StepReport(
            step=step,
            loss=found.loss.item(),
            accuracy=found.accuracy,
            length=length,
            sweeps=found.sweeps,
            learning_rate=rate,
            grad_norm=grad_norm,
            tokens_per_second=recipe.rows(length, processes=self.ranks.size) * length / took,
            seconds=self.position.seconds,
        )

    def _learn(self, batch: Batch) -> tuple[Found, Carried | None]:
        """Add the gradient of a batch, and return where its rows ended if they may go on."""
        phase = self._phase(batch.tokens_BT.shape[1])
        if phase is None or phase.carry is None:
            found = accumulate(self.model, self._placed(batch), self.recipe, self.ranks)
            return found, None
        rows, length = batch.tokens_BT.shape
        begin = carry.begun(
            *(self.model, self.position.carried),
            rows=rows,
            length=length,
            limit=phase.carry,
            noise=self.recipe.state_noise,
            mix=phase.carry_mix,
        )
        batch, known_B = self.task.follow(batch, begin.known_B)
        found = accumulate(
            self.model, self._placed(batch), self.recipe, self.ranks, begin=begin.state
        )
        carried = carry.ended(
            begin, state=found.state, known_B=known_B, right_B=found.right_B, length=length
        )
        return found, carried

    def _placed(self, batch: Batch) -> Batch:
        return tree.map_(lambda part: part.to(self.device), batch)

    def _batch(self, length: int) -> Batch:
        """Return this rank's rows; which rows there are is a function of the step alone."""
        recipe, ranks = self.recipe, self.ranks
        batch_size, step = recipe.rows(length, processes=ranks.size), self.position.step
        rows = ranks.rows(batch_size)
        alone = self.task.by_row
        batch = self.task.batch(
            split="train",
            length=length,
            batch_size=rows.stop - rows.start if alone else batch_size,
            seed=recipe.seed,
            index=step * ranks.size + ranks.rank if alone else step,
        )
        return batch if alone else tree.map_(lambda part: part[rows], batch)

    def _phase(self, length: int) -> Phase | None:
        """Return the phase of this step."""
        share = self.position.step / self.recipe.steps
        return phase_at(self.recipe.phases, share=share, length=length)

    def _go_deep(self, length: int) -> None:
        """Set the depth of the solve for this step."""
        recipe, core = self.recipe, self.model.core
        if isinstance(core, Equilibrium) and self.model.config.equilibrium is not None:
            rows = recipe.rows(length, processes=self.ranks.size)
            # From the model's own settings each time, so that no step depends on the one before.
            depth = at_phase(
                self.model.config.equilibrium,
                recipe.phases,
                share=self.position.step / recipe.steps,
                length=length,
                tokens=rows * length // parallel.loss_factor(self.model, self.ranks),
            )
            core.solve, core.gradient = depth.solve, depth.gradient

    def _descend(self) -> tuple[float, float]:
        """Take the optimizer step, if the gradient is finite; return its rate and its norm."""
        optim, step = self.recipe.optim, self.position.step
        rate = optim.rate * optim.schedule.at(step, self.recipe.steps)
        set_rate(self.optimizer, rate)
        grad_norm = parallel.gathered(clip_gradients(self.model, optim.clip)).item()
        if math.isfinite(grad_norm):
            self.optimizer.step()
        return rate, grad_norm

    def _check_data(self) -> None:
        """Ask for a sequence of every length, which the task refuses before a folder is made."""
        for length in self.recipe.curriculum.lengths:
            self.task.batch(
                split="train", length=length, batch_size=1, seed=self.recipe.seed, index=0
            )

    def _check_carry(self) -> None:
        if not self.task.follows:
            raise ConfigError(
                f"phases.carry: expected none for {self.task.name}, whose rows stand alone"
            )
        if self.ranks.size > 1:
            raise ConfigError(f"phases.carry: expected one process, got {self.ranks.size}")

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
        self.ranks.wait()  # until all have read, before the first one writes
        if self.ranks.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            config.save(self.recipe, path)
            record.truncate(metrics, position.step)
            sharded.delete_unfinished(self.folder)
            self._delete_old()
        self.ranks.wait()
        return position

    def _save(self) -> None:
        """Write a checkpoint, or begin to."""
        if self.saver is not None:
            extra = {checkpoint.TRAINING: checkpoint.training_file(self.position)}
            folder = checkpoint.checkpoint_folder(self.folder, self.position)
            self.saver.begin(folder, self.model, self.optimizer, extra)
        elif self.ranks.is_first:
            checkpoint.save_checkpoint(self.folder, self.model, self.optimizer, self.position)
            self._delete_old()

    def publish(self, *, wait: bool) -> None:
        """Let a checkpoint that was begun count once it is whole."""
        if self.saver is not None and self.saver.finish(wait=wait) is not None:
            self._delete_old()

    def _delete_old(self) -> None:
        checkpoint.delete_old(self.folder, keep=self.recipe.keep_checkpoints)

    def _summary(self) -> Iterator[Record]:
        totals = [
            ("parameters", float(parameter_count(self.model)), "count"),
            ("seconds", self.position.seconds, "s"),
        ]
        for name, value, unit in totals:
            yield Record(name=name, value=value, unit=unit, step=self.position.step, **self.about)
