"""Who waits, is prefilled and runs, in which slot; nothing here needs a model."""

import random

import pytest

from equilm.decode.scheduler import Move, Scheduler


def started(slots: int, count: int) -> Scheduler:
    """Return a scheduler in which the first requests run."""
    scheduler = Scheduler(slots=slots)
    for number in range(count):
        scheduler.add(number)
    for number in scheduler.admit():
        scheduler.start(number)
    return scheduler


def test_first_come_first_served() -> None:
    scheduler = started(2, 4)
    assert scheduler.running == [0, 1] and list(scheduler.waiting) == [2, 3]
    assert scheduler.admit() == []
    assert scheduler.remove(0) == Move(1, 0)
    assert scheduler.admit() == [2]
    assert scheduler.admit() == []  # who is prefilled has a slot already
    assert scheduler.start(2) == 1
    assert scheduler.running == [1, 2]


def test_the_last_takes_the_place_of_who_leaves() -> None:
    scheduler = started(4, 4)
    assert scheduler.remove(3) is None
    assert scheduler.remove(0) == Move(2, 0)
    assert scheduler.running == [2, 1]
    scheduler.add(7)
    assert scheduler.remove(7) is None and not scheduler.waiting


def test_the_running_fill_the_first_slots_whatever_happens() -> None:
    draw = random.Random(0)
    scheduler = Scheduler(slots=5)
    rows: list[int | None] = [None] * 5  # whose data lies where
    alive: list[int] = []
    for number in range(300):
        scheduler.add(number)
        alive.append(number)
        scheduler.admit()
        for waiting in draw.sample(scheduler.prefilling, k=len(scheduler.prefilling) // 2):
            rows[scheduler.start(waiting)] = waiting
        while len(alive) > 8:
            gone = alive.pop(draw.randrange(len(alive)))
            move = scheduler.remove(gone)
            if move is not None:
                rows[move.target] = rows[move.source]
        assert rows[: len(scheduler.running)] == scheduler.running
        assert len(scheduler.running) + len(scheduler.prefilling) <= 5
        known = [*scheduler.running, *scheduler.prefilling, *scheduler.waiting]
        assert sorted(known) == sorted(alive)
        assert scheduler.busy


@pytest.mark.parametrize(
    ("slots", "running", "width"), [(8, 1, 1), (8, 2, 2), (8, 3, 4), (8, 5, 8), (6, 5, 6)]
)
def test_sweeps_have_few_widths(slots: int, running: int, width: int) -> None:
    assert started(slots, running).width == width


def test_prompts_are_taken_in_between_sweeps() -> None:
    scheduler = Scheduler(slots=4, sweeps_between=0.1)
    for number in range(3):
        scheduler.add(number)
    scheduler.admit()
    # With nobody to wait for it, a prompt is taken in at once.
    assert scheduler.turn() == "prefill"
    scheduler.took_in([0], 25)
    assert scheduler.turn() == "prefill"
    scheduler.took_in([0], 25)
    scheduler.start(0)
    turns = []
    for _ in range(6):
        turns.append(scheduler.turn())
        if turns[-1] == "prefill":
            scheduler.took_in([1], 15)
        else:
            scheduler.swept(1, [])
    assert turns == ["sweep"] * 3 + ["prefill"] + ["sweep"] * 2
    assert scheduler.turn() == "prefill"


def test_a_long_prompt_lets_others_pass() -> None:
    scheduler = Scheduler(slots=4)
    for number in range(3):
        scheduler.add(number)
    scheduler.admit()
    left = {0: 900, 1: 20, 2: 900}
    kind = dict.fromkeys(left)
    assert scheduler.companions(left, kind) == [0, 2]
    scheduler.took_in([0, 2], 40)
    assert scheduler.companions(left, kind) == [1]
    scheduler.took_in([1], 40)
    assert scheduler.companions(left, kind) == [0, 2]


def test_in_lockstep_prompts_wait_for_all_tokens() -> None:
    scheduler = Scheduler(slots=4, policy="lockstep")
    for number in range(2):
        scheduler.add(number)
    scheduler.admit()
    scheduler.start(0)
    scheduler.took_in([0], 99)
    assert scheduler.turn() == "prefill"  # nothing is half solved
    assert scheduler.swept(1, []) == []
    assert scheduler.turn() == "sweep"
    assert scheduler.swept(1, [0]) == [0]
    assert scheduler.turn() == "prefill"


def test_like_goes_with_like() -> None:
    scheduler = Scheduler(slots=9)
    left = {0: 20, 1: 31, 2: 32, 3: 16, 4: 15, 5: 17}
    for number in left:
        scheduler.add(number)
    scheduler.admit()
    kind = dict.fromkeys(left, "loose") | {5: "tight"}
    assert scheduler.companions(left, kind) == [0, 1, 3]
    scheduler.remove(0)
    assert scheduler.companions(left, kind) == [1, 3]
    for number in (1, 3):
        scheduler.start(number)
    assert scheduler.companions(left, kind) == [2]


def test_who_may_move_on() -> None:
    assert started(4, 3).swept(1, [2, 0]) == [0, 2]
    scheduler = Scheduler(slots=4, policy="lockstep")
    for number in range(3):
        scheduler.add(number)
    for number in scheduler.admit():
        scheduler.start(number)
    assert scheduler.swept(1, [2, 0]) == []
    assert scheduler.swept(1, [2, 0, 1]) == [0, 1, 2]


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="slots: expected an integer >= 1, got 0"):
        Scheduler(slots=0)
    with pytest.raises(ValueError, match="policy: expected 'sweep' or 'lockstep', got 'first'"):
        Scheduler(slots=1, policy="first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sweeps_between: expected a number >= 0, got -1"):
        Scheduler(slots=1, sweeps_between=-1)
