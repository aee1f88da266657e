"""Recipes of the figures, as functions of what changes between their runs.

The small ones (`quick`) are the demo's: minutes on two CPU cores. Read `figures.py` next.
"""

from dataclasses import dataclass, replace

from equilm.nn.attention import AttentionConfig
from equilm.nn.deltanet import DeltaProductConfig
from equilm.nn.equilibrium import EquilibriumConfig
from equilm.nn.lstm import LSTMConfig
from equilm.nn.mamba2 import Mamba2Config
from equilm.nn.mixers import MixerConfig
from equilm.nn.model import ModelConfig
from equilm.solve import Phantom, Picard, Solve
from equilm.tasks import TaskConfig, WordProblemConfig
from equilm.train.optim import OptimConfig
from equilm.train.recipe import Recipe
from equilm.train.schedule import (
    AdaptiveLengths,
    Curriculum,
    FixedLengths,
    Phase,
    RateSchedule,
)

MAMBA2_QUICK = Mamba2Config(head_width=32, state_size=16)
MAMBA2_FULL = Mamba2Config(head_width=64, state_size=64)
# A reflection swaps two things: as many a token as a permutation of three, or five, may need. One
# tap, since with more it learns to look back instead.
DELTA_PRODUCT_QUICK = DeltaProductConfig(heads=4, steps=2, conv_width=1)
DELTA_PRODUCT_FULL = DeltaProductConfig(steps=4, conv_width=1)
LENGTHS_QUICK = (2, 3, 4, 6, 8, 11, 15, 20)
LENGTHS_FULL = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# Measured on S3 and S5: unrolled while sequences are short, then solved in windows.
PHASES = (
    Phase(max_steps=0, phantom_steps=6),
    Phase(length=6, window=8, max_steps=16, steps_per_token=1.5, phantom_steps=4),
)
SOLVED = EquilibriumConfig(solve=Solve(tolerance=0.01, solver=Picard(damping=0.8)))
# Those of recipes/s5.toml, whose rows go on.
PHASES_CARRIED = (
    Phase(max_steps=0, phantom_steps=4),
    Phase(length=3, max_steps=0, phantom_steps=6),
    Phase(length=4, max_steps=16, steps_per_token=1.5, phantom_steps=4),
    Phase(length=16, window=8, max_steps=16, phantom_steps=4, carry=64),
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """What the tracker of a group takes in full: that of its recipe in recipes/."""

    width: int
    steps: int
    batch_size: int
    rate: float
    checkpoint_every: int
    damping: float = 0.8
    last: tuple[Phase, ...] = ()


# Token by token from zero, the residual of the third evaluation beside the loss.
FEW_EVALUATIONS = Phase(
    share=0.85, length=16, window=1, max_steps=0, phantom_steps=3, residual_weight=3.0, carry=64
)
SIZES = {
    "S5": Size(width=384, steps=3000, batch_size=2048, rate=2e-3, checkpoint_every=500),
    "A5": Size(
        width=256,
        steps=2400,
        batch_size=1024,
        rate=3e-3,
        checkpoint_every=600,
        damping=0.9,
        last=(FEW_EVALUATIONS,),
    ),
}
MAX_TOKENS = 4096  # a step, of the tracker and its rivals
# Of the rivals in full, the best of those tried on seed 0 of S5 (docs/state-tracking.md).
RATES = {
    "mamba2-1": 4e-3,
    "mamba2-4": 4e-3,
    "mamba2-16": 2e-3,
    "llama": 2e-3,
    "lstm": 2e-3,
    "mamba2-signed": 2e-3,
    "deltaproduct": 1e-3,
}


def recipe(
    task: TaskConfig,
    *,
    quick: bool,
    layers: int = 1,
    mixer: MixerConfig | None = None,
    implicit: bool = False,
    curriculum: Curriculum | None = None,
    phases: tuple[Phase, ...] = PHASES,
    steps: int | None = None,
) -> Recipe:
    """Return a training run of a tracker.

    Args:
        task: What to learn.
        quick: Whether it is to take a minute of two CPU cores, or minutes of a GPU.
        layers: Of the stack.
        mixer: Mamba2 if left out.
        implicit: Whether the stack is iterated to its fixed point.
        curriculum: The lengths; if left out by accuracy where implicit, else by share of the run,
            since an explicit model may never reach the mark.
        phases: Depth of the solve.
        steps: Of the optimizer; 320 or 2,400 if left out.
    """
    mixer = mixer or (MAMBA2_QUICK if quick else MAMBA2_FULL)
    width = 64 if quick else size(task).width
    model = ModelConfig(
        width=width,
        num_layers=layers,
        mixer=mixer,
        # As in Llama; Mamba2 and LSTM have their own.
        mlp_hidden=8 * width // 3 if isinstance(mixer, AttentionConfig) else None,
        weight_norm=implicit,
        equilibrium=SOLVED if implicit else None,
    )
    return Recipe(
        model=model,
        task=task,
        steps=steps or (320 if quick else 2400),
        batch_size=64 if quick else 1024,
        max_tokens=None if quick else MAX_TOKENS,
        curriculum=curriculum or growing(quick=quick, by_accuracy=implicit),
        phases=phases,
        optim=OptimConfig(
            rate=3e-3 if quick else 1e-3,
            clip=1.0,
            weight_decay=0.0,
            schedule=RateSchedule(shape="linear" if quick else "stable", warmup=0.03, cooldown=0.3),
        ),
        # In float32 many layers take most of the time, for nothing (docs/state-tracking.md).
        precision="float32" if quick or implicit or layers == 1 else "bf16",
        threads=1 if quick else None,
        log_every=5 if quick else 10,
        checkpoint_every=100 if quick else 800,
    )


def size(task: TaskConfig) -> Size:
    """Return what a task takes in full: as S5 where nothing else is known."""
    named = task.group if isinstance(task, WordProblemConfig) else ""
    return SIZES.get(named, SIZES["S5"])


def tracker(task: TaskConfig, *, quick: bool) -> Recipe:
    """Return the run of the one implicit tracker.

    In full recipes/s5.toml or recipes/a5.toml.
    """
    made = recipe(task, quick=quick, implicit=True)
    if quick:
        return made
    full = size(task)
    assert isinstance(made.model, ModelConfig)
    model = replace(
        made.model,
        mixer=Mamba2Config(head_width=64, state_size=16, conv_width=2),
        equilibrium=EquilibriumConfig(
            solve=Solve(tolerance=0.01, solver=Picard(damping=full.damping), check_every=32),
            gradient=Phantom(damping=full.damping),
        ),
    )
    return replace(
        made,
        model=model,
        steps=full.steps,
        batch_size=full.batch_size,
        curriculum=AdaptiveLengths(lengths=(2, 3, 4, 6, 8, 16), accuracy=0.95, min_steps=10),
        phases=(*PHASES_CARRIED, *full.last),
        optim=replace(
            made.optim,
            rate=full.rate,
            schedule=RateSchedule(shape="stable", warmup=0.02, cooldown=0.5),
        ),
        log_every=20,
        checkpoint_every=full.checkpoint_every,
    )


def rival(task: TaskConfig, name: str, *, quick: bool) -> Recipe:
    """Return the run of an explicit model beside the tracker.

    In full it is as wide, takes as many tokens a step, and its rows grow by the tracker's rule, to
    64 tokens.
    """
    full = size(task)
    layers, mixer = rivals(quick=quick, width=full.width)[name]
    if quick:
        return recipe(task, quick=True, layers=layers, mixer=mixer)
    made = recipe(task, quick=False, layers=layers, mixer=mixer, curriculum=by_accuracy(64))
    optim = replace(made.optim, rate=RATES[name])
    return replace(made, batch_size=full.batch_size, optim=optim)


def of_depth(
    task: TaskConfig, length: int, *, quick: bool, layers: int, implicit: bool = False
) -> Recipe:
    """Return a run of a few layers on rows of at most `length` tokens.

    In full they grow by the tracker's rule; those of the implicit one go on beyond 16 as its do.
    """
    if quick:
        grows = up_to(length, quick=True)
        return recipe(
            task, quick=True, layers=layers, implicit=implicit, curriculum=grows, steps=200
        )
    if not implicit:
        made = recipe(task, quick=False, layers=layers, curriculum=by_accuracy(length))
        return replace(made, steps=1000, batch_size=size(task).batch_size)
    phases = tuple(replace(one, carry=one.carry and length) for one in PHASES_CARRIED)
    made = replace(tracker(task, quick=False), phases=phases)
    return replace(made, steps=1000, curriculum=by_accuracy(min(length, 16)))


def by_accuracy(length: int) -> Curriculum:
    """Return the lengths to `length` that a run grows through by the rule of the tracker."""
    lengths = tuple(one for one in LENGTHS_FULL if one <= length)
    return AdaptiveLengths(lengths=lengths, accuracy=0.95, min_steps=10)


def growing(*, quick: bool, by_accuracy: bool) -> Curriculum:
    """Return the lengths that a run grows through."""
    lengths = LENGTHS_QUICK if quick else LENGTHS_FULL
    if by_accuracy:
        return AdaptiveLengths(lengths=lengths, accuracy=0.98, min_steps=20)
    shares = tuple(0.6 * index / (len(lengths) - 1) for index in range(len(lengths)))
    return FixedLengths(lengths=lengths, shares=shares)


def up_to(length: int, *, quick: bool) -> Curriculum:
    """Return the lengths that grow to `length` over the first 60% of a run."""
    lengths = (*(one for one in LENGTHS_FULL if one < length), length)
    shares = tuple(0.6 * index / len(lengths) for index in range(len(lengths)))
    return FixedLengths(lengths=lengths, shares=shares)


def group(*, quick: bool) -> WordProblemConfig:
    """Return the word problem of a figure: S3 on a CPU, S5 on a GPU."""
    return WordProblemConfig(group="S3" if quick else "S5")


def rivals(*, quick: bool, width: int = 384) -> dict[str, tuple[int, MixerConfig]]:
    """Return the explicit models beside the implicit one: layers and mixer by name.

    Args:
        quick: Whether of width 64 and for S3.
        width: In full, a multiple of 64, which a head of attention has.
    """
    mamba2 = MAMBA2_QUICK if quick else MAMBA2_FULL
    heads = 4 if quick else width // 64
    reflects = DELTA_PRODUCT_QUICK if quick else replace(DELTA_PRODUCT_FULL, heads=width // 32)
    deepest = 4 if quick else 16
    # Colours go by this order: those that track stand out from the tracker's.
    return {
        "lstm": (1, LSTMConfig()),
        "deltaproduct": (1, reflects),
        **({f"mamba2-{deepest}": (deepest, mamba2)} if deepest > 4 else {}),
        "mamba2-4": (4, mamba2),
        "mamba2-signed": (4, replace(mamba2, eigenvalues="signed")),
        "llama": (4, AttentionConfig(heads=heads)),
        "mamba2-1": (1, mamba2),
    }


def in_bounds(base: Recipe, *, sweeps: int, phantom: int) -> Recipe:
    """Return a run that solves all tokens at once with a fixed number of sweeps from its start."""
    phases = (Phase(max_steps=sweeps, phantom_steps=phantom),)
    return replace(base, phases=phases)
