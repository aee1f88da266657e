"""Both policies answer the same requests alike, and what is counted adds up."""

from dataclasses import replace
from typing import Any

import pytest

from equilm.decode.engine import Engine
from equilm.measure import traffic
from equilm.measure.traffic import ENGINES, UNITS, Differs, TrafficConfig, answer, asked
from equilm.record import Record
from equilm.report.select import number
from equilm.report.traffic import traffic_tables
from tests.measure.models import small

QUICK = TrafficConfig(slots=(1, 3), rounds=3, answer=6, tolerances=(0.3, 1e-3), temperature=9.0)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    found = traffic.traffic(small(), QUICK, about={"model": "tiny", "device": "cpu"})
    return [record for each in found for record in each]


def test_every_policy_and_number_of_slots_is_measured(records: list[Record]) -> None:
    named = {(record.batch, record.name): number(record) for record in records}
    assert set(named) == {
        (slots, f"traffic_{engine}_{name}")
        for slots in QUICK.slots
        for engine in ENGINES
        for name in UNITS
    }
    assert {record.task for record in records} == {"tolerance 0.3, 0.001"}
    for slots in QUICK.slots:
        assert named[slots, "traffic_sweep_same"] == 1
        for engine in ENGINES:
            fast, slow = (named[slots, f"traffic_{engine}_gap_{p}"] for p in ("p50", "p99"))
            assert 0 < fast <= slow
            assert 1 < named[slots, f"traffic_{engine}_evaluations"] < 24
    # One at a time nobody waits for anybody; three at a time in lockstep they do.
    alone = [named[1, f"traffic_{engine}_use"] for engine in ENGINES]
    # But a token that runs out of steps takes one more sweep.
    assert alone == pytest.approx([1, 1, 1], abs=0.03)
    assert named[3, "traffic_lockstep_use"] < 0.9 < named[3, "traffic_sweep_use"]
    (table,) = traffic_tables(records)
    # Any one engine may be as fast as lockstep by chance.
    assert len(table.rows) == 6 and len({row[2] for row in table.rows}) > 1


def test_an_engine_that_answers_wrongly_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Careless(Engine):
        """By sweep it takes every token for the last of the vocabulary."""

        def __init__(self, *positional: Any, **named: Any) -> None:
            super().__init__(*positional, **named)
            if "policy" not in named:
                feed = self.slots.feed
                monkeypatch.setattr(self.slots, "feed", lambda rows, _: feed(rows, [5] * len(rows)))

    monkeypatch.setattr(traffic, "Engine", Careless)
    with pytest.raises(Differs, match=r"1 slots: expected the same answers, .*% of them are"):
        list(traffic.traffic(small(), replace(QUICK, temperature=0.0)))


def test_requests_are_drawn_from_the_seed_alone() -> None:
    requests = asked(QUICK, 6, 40)
    assert requests == asked(QUICK, 6, 40) and requests[:7] == asked(QUICK, 6, 7)
    assert {len(request.prompt) for request in requests} <= set(range(1, 17))
    assert {request.max_tokens for request in requests} == set(range(1, 7))
    assert {request.tolerance for request in requests} == {0.3, 1e-3}
    assert len({request.sampling.seed for request in requests}) == 40


def test_all_that_is_asked_is_answered() -> None:
    requests = asked(QUICK, 6, 5)
    for run in answer(small(), requests, 2).values():
        assert [len(run.ids[place]) for place in range(5)] == [one.max_tokens for one in requests]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"slots": ()}, r"slots: expected one or more integers >= 1, got \(\)"),
        ({"rounds": 1}, "rounds: expected an integer >= 2, got 1"),
        ({"tolerances": ()}, "tolerances: expected one number or more, got none"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TrafficConfig(**settings)
