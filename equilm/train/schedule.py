"""What changes during a run, as pure functions: learning rate, depth of the solve, length.

Nothing here holds a position; the trainer asks with the step, and where the curriculum stands
(`Place`) is saved with every checkpoint. Read `trainer.py` next.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from equilm.nn.equilibrium import EquilibriumConfig
from equilm.solve.gradient import Phantom


@dataclass(frozen=True, kw_only=True)
class RateSchedule:
    """The learning rate as a multiple of its peak.

    Args:
        shape: After a linear warm-up, `linear` falls to `final`, met where the step after the last
            would be, `cosine` does so on half a cosine, `stable` stays at 1 and falls as 1 − sqrt
            over the last `cooldown`.
        warmup: Share of the steps, in [0, 1).
        cooldown: Share of the steps, in [0, 1]; read by `stable` alone.
        final: Multiple of the peak at the end, in [0, 1].

    Source: arXiv 2502.07827 (linear for state tracking, the others for language); the cooldown is
    Hägele et al. 2024, arXiv 2405.18392.
    """

    shape: Literal["linear", "cosine", "stable"] = "linear"
    warmup: float = 0.1
    cooldown: float = 0.2
    final: float = 0.0

    def __post_init__(self) -> None:
        for name in ("warmup", "cooldown", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share in [0, 1], got {getattr(self, name)}")
        if self.warmup == 1:
            raise ValueError("warmup: expected a share below 1, got 1")

    def at(self, step: int, num_steps: int) -> float:
        """Return the multiple for optimizer step `step` (from 0) of `num_steps`."""
        warmup_steps = self.warmup * num_steps
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if self.shape == "stable":
            left = (num_steps - step) / max(1.0, self.cooldown * num_steps)
            return 1.0 if left >= 1 else self.final + (1 - self.final) * (1 - math.sqrt(1 - left))
        done = (step - warmup_steps) / max(1.0, num_steps - warmup_steps)
        fall = 1 - done if self.shape == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.final + (1 - self.final) * fall


@dataclass(frozen=True, kw_only=True)
class Phase:
    """From when on, how deep: (max_steps + phantom_steps), over how many tokens at once.

    Args:
        share: The phase begins at this share of the run …
        length: … and at this training length in tokens, whichever is later.
        max_steps: Sweeps without gradient; 0 unrolls the phantom steps alone.
        steps_per_token: Caps the sweeps at this × (tokens solved at once) + 2, since information
            travels less than one token a sweep, > 0; `None` does not.
        phantom_steps: Differentiable steps after them; read by `Phantom` alone.
        residual_weight: In the loss, of the mean over tokens of ‖F(z) − z‖² / ‖F(z)‖² where the
            last of those steps is taken, so that fewer suffice, ≥ 0. The loss told is without it.
            Read by `Phantom` alone, whose own weight a recipe with phases leaves at 0.
        window: Tokens solved at once, with gradients passed on through the state between windows;
            `None` solves the whole sequence at once.
        precision: Of the sweeps without gradient, as in `Solve`; `None` keeps the model's own.
        carry: Tokens that a row may come to by going on, in the next step, in the state that it
            ended in; no gradient goes back there. It begins anew where the next step would take it
            beyond, or its last answer was wrong. `None` begins every row anew. Read for explicit
            models as well.
        carry_mix: At most this share of another row's state, drawn anew for each row and step, is
            mixed into one that goes on, in [0, 0.5): what the row itself was has to win. Above 0 it
            needs `carry`, and states that do not grow (no attention).
    """

    share: float = 0.0
    length: int = 0
    max_steps: int = 24
    steps_per_token: float | None = None
    phantom_steps: int = 4
    residual_weight: float = 0.0
    window: int | None = None
    precision: Literal["full", "fp8"] | None = None
    carry: int | None = None
    carry_mix: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"share: expected a number in [0, 1), got {self.share}")
        if self.max_steps < 0:
            raise ValueError(f"max_steps: expected an integer >= 0, got {self.max_steps}")
        if self.steps_per_token is not None and not self.steps_per_token > 0:
            raise ValueError(f"steps_per_token: expected a number > 0, got {self.steps_per_token}")
        if self.phantom_steps < 1:
            raise ValueError(f"phantom_steps: expected an integer >= 1, got {self.phantom_steps}")
        if not self.residual_weight >= 0:
            raise ValueError(f"residual_weight: expected a number >= 0, got {self.residual_weight}")
        if not 0 <= self.carry_mix < 0.5:
            raise ValueError(f"carry_mix: expected a share in [0, 0.5), got {self.carry_mix}")
        if self.carry_mix and self.carry is None:
            raise ValueError(f"carry_mix: expected 0 without carry, got {self.carry_mix}")
        for name in ("window", "carry"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {value}")


def phase_at(phases: tuple[Phase, ...], *, share: float, length: int) -> Phase | None:
    """Return the last phase that has begun, if one has."""
    begun = [phase for phase in phases if share >= phase.share and length >= phase.length]
    return begun[-1] if begun else None


def at_phase(
    config: EquilibriumConfig,
    phases: tuple[Phase, ...],
    *,
    share: float,
    length: int,
    tokens: int = 1,
) -> EquilibriumConfig:
    """Return `config` with the depth of the last phase that has begun; unchanged if none has.

    Args:
        config: The model's own.
        phases: Of the run.
        share: Of the run that is done.
        length: Of the sequences, in tokens.
        tokens: Of the step, over which a residual's weight is spread.
    """
    phase = phase_at(phases, share=share, length=length)
    if phase is None:
        return config
    max_steps = phase.max_steps
    if phase.steps_per_token is not None:
        at_once = min(length, phase.window or length)
        max_steps = min(max_steps, int(phase.steps_per_token * at_once + 2))
    gradient = config.gradient
    if isinstance(gradient, Phantom):
        weight = phase.residual_weight / tokens
        gradient = replace(gradient, steps=phase.phantom_steps, residual_weight=weight)
    precision = phase.precision or config.solve.precision
    solve = replace(config.solve, max_steps=max_steps, window=phase.window, precision=precision)
    return EquilibriumConfig(solve=solve, gradient=gradient)


# One batch reaches a mark by luck; so many that are drawn apart hardly do, and cost little.
LEARNT_STEPS = 20


class Place(NamedTuple):
    """Where a curriculum stands: which length, for how many steps, how many of them learnt."""

    level: int = 0
    steps: int = 0
    learnt: int = 0  # steps at the last length that reached `until`, the last ones in a row


@dataclass(frozen=True, kw_only=True)
class FixedLengths:
    """Lengths by share of the run; one length is the ordinary case.

    Args:
        lengths: In tokens, at least one.
        shares: Where each begins, rising from 0, below 1.
    """

    kind: Literal["fixed"] = "fixed"
    lengths: tuple[int, ...] = (256,)
    shares: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        _check_lengths(self.lengths)
        if len(self.shares) != len(self.lengths) or self.shares[0] != 0:
            raise ValueError(
                f"shares: expected {len(self.lengths)} numbers, the first 0, got {self.shares}"
            )
        if list(self.shares) != sorted(self.shares):
            raise ValueError(f"shares: expected rising numbers, got {self.shares}")
        if not self.shares[-1] < 1:
            raise ValueError(f"shares: expected numbers below 1, got {self.shares}")

    def advance(self, place: Place, *, accuracy: float, share: float) -> Place:
        """Return the place for the next step, which begins at `share` of the run."""
        level = sum(begins <= share for begins in self.shares) - 1
        return Place(level, place.steps + 1 if level == place.level else 0)

    def is_learnt(self, place: Place) -> bool:
        """Return that a run goes on to its last step."""
        return False


@dataclass(frozen=True, kw_only=True)
class AdaptiveLengths:
    """The next length when the accuracy of a batch passes a mark.

    A fixed schedule grows faster than a hard group is learnt; this one waits.

    Args:
        lengths: In tokens, at least one.
        accuracy: The mark, in (0, 1].
        min_steps: Steps at a length before it may be left, ≥ 1.
        until: An accuracy in (0, 1] that ends the run, once so many steps in a row as LEARNT_STEPS
            reach it at the last length; `None` takes all steps.
    """

    kind: Literal["adaptive"] = "adaptive"
    lengths: tuple[int, ...] = (2, 3, 4, 6, 8, 11, 15, 20)
    accuracy: float = 0.98
    min_steps: int = 30
    until: float | None = None

    def __post_init__(self) -> None:
        _check_lengths(self.lengths)
        for name in ("accuracy", "until"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name}: expected a share in (0, 1], got {value}")
        if self.min_steps < 1:
            raise ValueError(f"min_steps: expected an integer >= 1, got {self.min_steps}")

    def advance(self, place: Place, *, accuracy: float, share: float) -> Place:
        """Return the place for the next step, after one that reached `accuracy`."""
        steps = place.steps + 1
        if place.level == len(self.lengths) - 1:
            right = self.until is not None and accuracy >= self.until
            return Place(place.level, steps, place.learnt + 1 if right else 0)
        if steps < self.min_steps or not accuracy >= self.accuracy:
            return Place(place.level, steps)
        return Place(place.level + 1, 0)

    def is_learnt(self, place: Place) -> bool:
        """Return whether a run ends here, before its last step."""
        return place.learnt >= LEARNT_STEPS


Curriculum = FixedLengths | AdaptiveLengths


def _check_lengths(lengths: tuple[int, ...]) -> None:
    if not lengths or min(lengths) < 1:
        raise ValueError(f"lengths: expected one or more integers >= 1, got {lengths}")
