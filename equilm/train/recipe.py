"""A recipe: everything that decides a training run, read strictly from TOML.

Read `trainer.py` next.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from equilm.nn.hybrid import HybridConfig
from equilm.nn.model import ModelConfig
from equilm.nn.presets import preset
from equilm.solve.gradient import Phantom
from equilm.tasks import Task, TaskConfig, WordProblemConfig
from equilm.train.optim import OptimConfig
from equilm.train.schedule import Curriculum, FixedLengths, Phase, Place


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run; the defaults are the published state-tracking run, shortened by nothing.

    Args:
        model: A preset's name, or a table.
        task: What to learn.
        seed: Of the initial values, the data and the dropout; in [0, 2³²).
        steps: Optimizer steps.
        batch_size: Sequences a step, over all processes.
        max_tokens: Tokens a step at most, so that longer sequences come in smaller batches; `None`
            sets no limit.
        rows_at_once: Sequences that a process computes at once; it takes its share of the batch in
            as many pieces as that needs, whose gradients add up. `None` takes all at once.
        curriculum: Lengths of the training sequences.
        gradient_length: Tokens that a gradient goes back over. Longer sequences are cut into
            windows of so many, each begun where the one before it ended; `None` cuts none.
        state_noise: Standard deviation of the recurrent state before the first token, ≥ 0.
        label_smoothing: Share of each target that training spreads over the vocabulary, in [0, 1).
            The loss that is reported is that of the targets themselves.
        phases: Depth of the solve during the run; none keeps the model's own. An explicit model
            has no solve, so that two recipes may differ in the model alone.
        optim: Optimizer and rate.
        precision: Compute type on a GPU; a CPU always computes in float32.
        device: `auto` takes a GPU if there is one.
        capture: Whether to record steps of one shape as CUDA graphs on a GPU (`nn/capture.py`): the
            same numbers, no waiting for the host.
        recompute: Whether to compute blocks again in the backward pass instead of keeping what they
            computed: the same numbers, less memory, more time.
        shard: What parameters, gradients and moments are spread over where there are several
            processes: `all` of them, those of a `node` (a copy in every node), or `off` (a copy
            in every process). Steps are recorded as graphs where nothing is spread.
        threads: Of PyTorch on a CPU; `None` leaves it the choice. One is fastest for small models:
            their operations are shorter than the wait for a second thread.
        log_every: Steps between two lines of `metrics.jsonl`.
        checkpoint_every: Steps between two checkpoints; the last step always makes one.
        keep_checkpoints: How many of the newest stay.

    Source of the two options for lengths beyond training: arXiv 2507.02782 (windows as in
    truncated backpropagation through time; random states).

    Source: arXiv 2502.07827, state tracking: 8.39M sequences of 256 tokens in batches of 512, the
    first 4,005 steps unrolled to depth 4, then (32+4).
    """

    model: str | ModelConfig = "state-tracking"
    task: TaskConfig = field(default_factory=lambda: WordProblemConfig(group="A5"))
    seed: int = 0
    steps: int = 16_384
    batch_size: int = 512
    max_tokens: int | None = None
    rows_at_once: int | None = None
    curriculum: Curriculum = field(default_factory=FixedLengths)
    gradient_length: int | None = None
    state_noise: float = 0.0
    label_smoothing: float = 0.0
    phases: tuple[Phase, ...] = (
        Phase(max_steps=0, phantom_steps=4),
        Phase(share=4005 / 16_384, max_steps=32, phantom_steps=4),
    )
    optim: OptimConfig = field(default_factory=OptimConfig)
    precision: Literal["bf16", "float32"] = "bf16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    capture: bool = True
    recompute: bool = False
    shard: Literal["all", "node", "off"] = "all"
    threads: int | None = None
    log_every: int = 10
    checkpoint_every: int = 200
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: expected an integer in [0, 2³²), got {self.seed}")
        for name in ("threads", "max_tokens", "rows_at_once", "gradient_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {value}")
        try:
            model = preset(self.model) if isinstance(self.model, str) else self.model
        except ValueError as error:
            raise ValueError(f"model: {error}") from None
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing: expected a share in [0, 1), got {self.label_smoothing}"
            )
        if not self.state_noise >= 0:
            raise ValueError(f"state_noise: expected a number >= 0, got {self.state_noise}")
        if self.state_noise and model.mixer.kind == "attention":
            raise ValueError(
                f"state_noise: expected 0 for attention, which begins with nothing, "
                f"got {self.state_noise}"
            )
        self._check_phases(model)

    def _check_phases(self, model: ModelConfig) -> None:
        own = model.equilibrium.gradient if model.equilibrium is not None else None
        if self.phases and isinstance(own, Phantom) and own.residual_weight:
            raise ValueError(
                "model.equilibrium.gradient.residual_weight: expected 0 beside phases, each of "
                f"which says its own, got {own.residual_weight}"
            )
        mixer = model.mixer
        parts = mixer.layers if isinstance(mixer, HybridConfig) else (model,)
        attends = any(part.mixer.kind == "attention" for part in parts)
        for index, phase in enumerate(self.phases):
            if phase.carry_mix and attends:
                raise ValueError(
                    f"phases.{index}.carry_mix: expected 0 for attention, whose states are as long "
                    f"as their rows, got {phase.carry_mix}"
                )

    def ends(self, step: int, place: Place) -> bool:
        """Return whether a run that stands there after `step` steps is at its end."""
        return step >= self.steps or self.curriculum.is_learnt(place)

    def rows(self, length: int, *, processes: int = 1) -> int:
        """Return the sequences of a step at `length`, a multiple of the number of processes."""
        if self.max_tokens is None:
            return self.batch_size
        rows = min(self.batch_size, self.max_tokens // length)
        return max(1, rows // processes) * processes

    def model_for(self, task: Task) -> ModelConfig:
        """Return the model's configuration with the vocabulary of `task`.

        Raises:
            ValueError: If the model names a smaller vocabulary itself.
        """
        if isinstance(self.model, str):
            return replace(preset(self.model), vocab_size=task.vocab_size)
        if self.model.vocab_size is None:
            return replace(self.model, vocab_size=task.vocab_size)
        if self.model.vocab_size < task.vocab_size:
            raise ValueError(
                f"model.vocab_size: expected an integer >= {task.vocab_size}, as the task needs, "
                f"got {self.model.vocab_size}"
            )
        return self.model


def use_device(name: str, *, threads: int | None = None) -> torch.device:
    """Return the device of that name, `auto` is the GPU if there is one; set the threads of a CPU.

    Raises:
        ValueError: For `cuda` without a GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected cpu on this machine, got cuda")
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.device(name)
