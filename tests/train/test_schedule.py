"""Rates, depths and lengths at the ends of their ranges and on both sides of every change."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from equilm.nn.equilibrium import EquilibriumConfig
from equilm.solve.gradient import Implicit, Phantom
from equilm.solve.iterate import Solve
from equilm.solve.picard import Picard
from equilm.train.schedule import (
    AdaptiveLengths,
    FixedLengths,
    Phase,
    Place,
    RateSchedule,
    at_phase,
)

OWN = EquilibriumConfig(
    solve=Solve(solver=Picard(damping=0.5), tolerance=0.01, max_steps=24, window=7),
    gradient=Phantom(steps=4, damping=0.6),
)


@pytest.mark.parametrize("shape", ["linear", "cosine", "stable"])
def test_the_rate_warms_up_to_its_peak_and_falls_to_its_end(shape: Any) -> None:
    schedule = RateSchedule(shape=shape, warmup=0.1, cooldown=0.2, final=0.25)
    rates = [schedule.at(step, 100) for step in range(101)]
    assert rates[:10] == [pytest.approx((step + 1) / 11) for step in range(10)]
    assert rates[10] == 1
    assert rates[100] == pytest.approx(0.25)
    assert all(left >= right for left, right in pairwise(rates[10:]))
    assert 0.25 < rates[99] < 1


def test_each_shape_half_way_down() -> None:
    linear, cosine, stable = (
        RateSchedule(shape=shape, warmup=0.0, cooldown=0.5)
        for shape in ("linear", "cosine", "stable")
    )
    assert linear.at(25, 100) == pytest.approx(0.75)
    assert cosine.at(25, 100) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert cosine.at(50, 100) == pytest.approx(0.5)
    assert [stable.at(step, 100) for step in (0, 25, 50)] == [1, 1, 1]
    assert stable.at(75, 100) == pytest.approx(1 - math.sqrt(0.5))


@pytest.mark.parametrize("shape", ["linear", "cosine", "stable"])
@pytest.mark.parametrize(("warmup", "cooldown"), [(0.0, 0.0), (0.99, 1.0)])
def test_the_shortest_runs_have_a_rate(shape: Any, warmup: float, cooldown: float) -> None:
    schedule = RateSchedule(shape=shape, warmup=warmup, cooldown=cooldown)
    for steps in (1, 2, 3):
        assert all(0 < schedule.at(step, steps) <= 1 for step in range(steps))


def test_the_last_phase_begun_wins() -> None:
    phases = (Phase(max_steps=0), Phase(share=0.5, max_steps=8), Phase(length=6, max_steps=16))

    def depth(share: float, length: int) -> int:
        return at_phase(OWN, phases, share=share, length=length).solve.max_steps

    assert [depth(0.0, 5), depth(0.49, 5), depth(0.5, 5), depth(1.0, 5)] == [0, 0, 8, 8]
    assert [depth(0.0, 6), depth(0.6, 6)] == [16, 16]


def test_a_phase_waits_for_both_its_share_and_its_length() -> None:
    phases = (Phase(share=0.5, length=6, max_steps=3),)
    for share, length in ((0.4, 9), (0.9, 5)):
        assert at_phase(OWN, phases, share=share, length=length) == OWN
    assert at_phase(OWN, phases, share=0.5, length=6).solve.max_steps == 3
    assert at_phase(OWN, (), share=0.5, length=6) == OWN


def test_a_phase_changes_depth_and_window_and_nothing_else() -> None:
    phase = Phase(max_steps=5, phantom_steps=2, window=3)
    changed = at_phase(OWN, (phase,), share=0.0, length=9)
    assert changed.solve == replace(OWN.solve, max_steps=5, window=3)
    assert changed.gradient == Phantom(steps=2, damping=0.6)
    charging = at_phase(OWN, (replace(phase, residual_weight=3.0),), share=0.0, length=9, tokens=12)
    assert charging.gradient == Phantom(steps=2, damping=0.6, residual_weight=0.25)
    exact = replace(OWN, gradient=Implicit())
    for one in (phase, replace(phase, residual_weight=3.0)):
        assert at_phase(exact, (one,), share=0.0, length=9).gradient == Implicit()


@pytest.mark.parametrize(
    ("length", "window", "expected"),
    [(2, None, 5), (10, None, 17), (40, None, 32), (40, 4, 8), (2, 4, 5)],
)
def test_sweeps_follow_the_tokens_solved_at_once(
    length: int, window: int | None, expected: int
) -> None:
    phase = Phase(max_steps=32, steps_per_token=1.5, window=window)
    assert at_phase(OWN, (phase,), share=0.0, length=length).solve.max_steps == expected


def test_fixed_lengths_follow_the_share() -> None:
    curriculum = FixedLengths(lengths=(4, 8, 16), shares=(0.0, 0.25, 0.5))
    place, lengths, waited = Place(), [], []
    for step in range(8):
        lengths.append(curriculum.lengths[place.level])
        waited.append(place.steps)
        place = curriculum.advance(place, accuracy=0.0, share=(step + 1) / 8)
    assert lengths == [4, 4, 8, 8, 16, 16, 16, 16]
    assert waited == [0, 1, 0, 1, 0, 1, 2, 3]


def test_adaptive_lengths_wait_for_the_mark_and_for_their_steps() -> None:
    curriculum = AdaptiveLengths(lengths=(2, 4, 8), accuracy=0.9, min_steps=2)
    place, lengths = Place(), []
    for accuracy in (1.0, 0.89, 0.9, 1.0, 0.0, 1.0, 1.0, 1.0):
        lengths.append(curriculum.lengths[place.level])
        place = curriculum.advance(place, accuracy=accuracy, share=0.0)
    # The first 1.0 comes too early, 0.89 is below the mark; the last length is never left.
    assert lengths == [2, 2, 2, 4, 4, 4, 8, 8]
    assert place == Place(2, 2)
    assert curriculum.advance(Place(0, 5), accuracy=math.nan, share=0.0) == Place(0, 6)


def test_a_run_ends_when_the_last_length_is_learnt_for_long_enough() -> None:
    curriculum = AdaptiveLengths(lengths=(2, 4), accuracy=0.5, min_steps=1, until=0.9)
    place, learnt = Place(), []
    for accuracy in (*(1.0,) * 20, 0.89, *(0.9,) * 20):
        place = curriculum.advance(place, accuracy=accuracy, share=0.0)
        learnt.append(curriculum.is_learnt(place))
    # The first step is one of the length before, and a step below the mark begins the count anew.
    assert learnt == [False] * 40 + [True]
    endless = replace(curriculum, until=None)
    assert not endless.is_learnt(endless.advance(Place(1, 99), accuracy=1.0, share=0.0))
    assert not FixedLengths().is_learnt(Place(0, 99))


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        (RateSchedule, {"warmup": 1.0}, "warmup: expected a share below 1"),
        (RateSchedule, {"warmup": -0.1}, r"warmup: .*\[0, 1\], got -0.1"),
        (RateSchedule, {"final": 2.0}, "final: .*got 2.0"),
        (RateSchedule, {"cooldown": math.nan}, "cooldown: .*got nan"),
        (Phase, {"share": 1.0}, r"share: .*\[0, 1\), got 1.0"),
        (Phase, {"max_steps": -1}, "max_steps: .*got -1"),
        (Phase, {"phantom_steps": 0}, "phantom_steps: .*got 0"),
        (Phase, {"steps_per_token": -1.0}, "steps_per_token: .*got -1.0"),
        (Phase, {"window": 0}, "window: .*got 0"),
        (FixedLengths, {"lengths": ()}, r"lengths: .*got \(\)"),
        (FixedLengths, {"lengths": (0,)}, r"lengths: .*got \(0,\)"),
        (FixedLengths, {"lengths": (2, 4)}, "shares: expected 2 numbers"),
        (FixedLengths, {"shares": (0.1,)}, "shares: .*the first 0"),
        (FixedLengths, {"lengths": (2, 4, 8), "shares": (0.0, 0.5, 0.2)}, "shares: .*rising"),
        (FixedLengths, {"lengths": (2, 4), "shares": (0.0, 1.0)}, "shares: .*below 1"),
        (AdaptiveLengths, {"lengths": (2, -1)}, "lengths: "),
        (AdaptiveLengths, {"accuracy": 0.0}, r"accuracy: .*\(0, 1\], got 0.0"),
        (AdaptiveLengths, {"until": 1.5}, r"until: .*\(0, 1\], got 1.5"),
        (AdaptiveLengths, {"min_steps": 0}, "min_steps: .*got 0"),
    ],
)
def test_a_setting_out_of_range_is_named(kind: Any, settings: Any, told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        kind(**settings)
