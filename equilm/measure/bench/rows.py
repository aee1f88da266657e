"""What is timed, and what is known of it: the reference's figures and our goals, as data.

The reference's figures, and the goals, hold on one NVIDIA H200 (driver 580, torch 2.11 with CUDA
13.0, triton 3.6) in bf16: random tokens, random initial values, a tolerance of zero so that every
sweep runs, forward, loss and backward without the optimizer step, median of 5 after warm-up. They
are shown on that device only. Read `planning.py` next.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.model import ModelConfig
from equilm.nn.presets import explicit, preset
from equilm.nn.s6 import S6Config
from equilm.report.speed import label

RECOMPUTED = "recomputed"  # the part of a step whose blocks are computed again
PACKED = "packed"  # the part of a step whose rows hold many documents
REFERENCE_DEVICE = "NVIDIA H200"


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the public reference takes, and what we want to take at most."""

    reference_ms: float | None = None
    reference_gib: float | None = None
    goal_ms: float | None = None
    goal_gib: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a benchmark: which model, at which shape.

    Args:
        model: A name that `config_of` knows.
        batch: B.
        length: T.
        part: Which part of the model; empty for all of it, `RECOMPUTED` for all of it that way,
            `PACKED` for all of it on documents of about 300 tokens.
        depth: (s, k) of an implicit model's solve, where it has one to do.
        precision: Of the sweeps without gradient, as in `Solve`.
        known: The reference's figures and the goals.
    """

    model: str
    batch: int
    length: int
    part: str = ""
    depth: tuple[int, int] | None = None
    precision: Literal["full", "fp8"] = "full"
    known: Known = field(default_factory=Known)

    @property
    def label(self) -> str:
        """Its name in tables, as `report/speed.py` makes it from Records."""
        return label(
            self.model,
            part=self.part,
            batch=self.batch,
            length=self.length,
            depth=self.depth,
            precision=self.precision,
        )


def _step(
    model: str, batch: int, length: int, depth: tuple[int, int] | None, *known: float | None
) -> Row:
    """A training step; what is known in the order of the table of goals."""
    milliseconds, gib, goal_ms, goal_gib = (*known, None, None, None, None)[:4]
    figures = Known(
        reference_ms=milliseconds, reference_gib=gib, goal_ms=goal_ms, goal_gib=goal_gib
    )
    return Row(model=model, batch=batch, length=length, depth=depth, known=figures)


# Model, batch, length, (s, k); the reference's ms and GiB; the goals in ms and GiB.
_FULL = (
    _step("state-tracking", 512, 256, (32, 4), 212.1, 8.1, 42),
    _step("state-tracking", 512, 256, (4, 1), 35.4, 4.6, 9),
    _step("explicit-mamba2-130m", 16, 2048, None, 181.4, 33.1, 75),
    _step("mamba2-130m", 16, 2048, (4, 1), 372.4, 33.5, 120),
    _step("mamba2-130m", 16, 2048, (24, 4), 1900.8, 66.0, 380, 33),
    _step("explicit-mamba2-1.3b", 4, 2048, None, 362.2, 26.9, 165),
    _step("mamba2-1.3b", 4, 2048, (4, 1), 885.3, 31.8, 300),
    _step("mamba2-1.3b", 4, 2048, (24, 4), 3491.0, 80.2, 870, 45),
    _step("llama-130m", 16, 2048, (32, 4)),
    _step("llama-1.3b", 4, 2048, (32, 4)),
)
# Where sweeps may multiply in 8 bits, the same step again with such sweeps.
TRAIN_GPU = (
    *(
        replace(row, precision=precision)
        for row in _FULL
        for precision in (("full", "fp8") if row.known.goal_ms and row.depth else ("full",))
    ),
    # And where the goal names memory, with blocks computed again in the backward pass.
    *(
        replace(row, precision="fp8", part=RECOMPUTED)
        for row in _FULL
        if row.known.goal_gib is not None
    ),
    Row(model="mamba2-130m", batch=16, length=2048, depth=(4, 1), part=PACKED),
)
TRAIN_CPU = (
    _step("state-tracking", 2, 64, (32, 4)),
    _step("state-tracking", 2, 64, (4, 1)),
    _step("explicit-small-mamba2", 2, 128, None),
    _step("small-mamba2", 2, 128, (4, 1)),
    _step("small-mamba2", 2, 128, (24, 4)),
    Row(model="small-mamba2", batch=2, length=128, depth=(4, 1), part=PACKED),
    _step("small-llama", 2, 128, (32, 4)),
)
# Batch and length at which operations are timed.
SHAPES_GPU = {"mamba2-130m": (16, 2048), "mamba2-1.3b": (4, 2048), "state-tracking": (512, 256)}
SHAPES_CPU = {"small-mamba2": (2, 128), "state-tracking": (2, 64)}


def sweep_row(
    model: str, batch: int, reference_ms: float | None = None, goal_ms: float | None = None
) -> Row:
    """A sweep of all layers for one token of each of `batch` sequences."""
    known = Known(reference_ms=reference_ms, goal_ms=goal_ms)
    return Row(model=model, batch=batch, length=1, part="one sweep", known=known)


DECODE_GPU = (
    sweep_row("mamba2-130m", 1, 33.1, 0.20),
    sweep_row("mamba2-130m", 64, 34.4, 0.45),
    sweep_row("mamba2-1.3b", 1, 78.2, 0.95),
    sweep_row("mamba2-1.3b", 64, 80.9, 2.2),
)
DECODE_CPU = tuple(sweep_row(m, b) for m in ("small-mamba2", "state-tracking") for b in (1, 64))

# Batches at which explicit models generate, on a GPU up to where it is full or gains little.
_BATCHES = (1, 4, 16, 64, 256)
GENERATING_GPU = {
    "s6-130m": (*_BATCHES, 1024, 4096),
    "mamba2-130m": (*_BATCHES, 1024),
    "llama-130m": (*_BATCHES, 768),
}
GENERATING_CPU = {"small-s6": (1, 8), "small-mamba2": (1, 8), "small-llama": (1, 8)}

# What has no published implicit model, and stand-ins where a whole one would take minutes.
_OWN = {
    "s6-130m": replace(preset("mamba2-130m"), mixer=S6Config()),
    "small-mamba2": replace(
        preset("mamba2-130m"),
        vocab_size=1000,
        width=128,
        num_layers=2,
        mixer=Mamba2Config(head_width=32, state_size=32),
    ),
    "small-llama": replace(
        preset("llama-130m"), vocab_size=1000, width=192, num_layers=2, mlp_hidden=512
    ),
    "small-s6": replace(
        preset("mamba2-130m"), vocab_size=1000, width=128, num_layers=2, mixer=S6Config()
    ),
}


def config_of(name: str) -> ModelConfig:
    """Look up a published model, one of ours, or either without its equilibrium.

    Raises:
        ValueError: For an unknown name; names the nearest.
    """
    plain = name.removeprefix("explicit-")
    if plain not in _OWN:
        return preset(name)
    return _OWN[plain] if plain == name else explicit(_OWN[plain])
