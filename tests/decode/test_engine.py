"""The engine gives every request what the plain loop gives it alone, whoever runs beside it."""

from functools import cache
from typing import Any

import pytest

from equilm.decode.engine import Engine
from equilm.decode.request import Request
from equilm.nn.model import MIXERS, LanguageModel
from tests.decode.plain import Told, plain, ragged, run
from tests.nn.build import equilibrium_model, language_model

KINDS = [(kind, implicit) for kind in MIXERS for implicit in (True, False)]


def build(kind: str, implicit: bool) -> LanguageModel:
    """Return a small model in float64, where no residual lies within rounding of a tolerance."""
    return (equilibrium_model if implicit else language_model)(kind, num_layers=1).eval()


@cache
def expected(kind: str, implicit: bool) -> list[Told]:
    return [plain(build(kind, implicit), request) for request in ragged(6)]


@pytest.mark.parametrize(("kind", "implicit"), KINDS)
@pytest.mark.parametrize(
    "settings",
    [
        {"slots": 1},
        {"slots": 3, "check_every": 3},
        {"slots": 8},
        {"slots": 3, "policy": "lockstep"},
        {"slots": 2, "prompt_pace": 2, "chunk": 4},
    ],
    ids=str,
)
def test_the_engine_is_the_plain_loop(kind: str, implicit: bool, settings: dict[str, Any]) -> None:
    engine = Engine(build(kind, implicit), capacity=40, window=1, **settings)
    assert run(engine, ragged(6)) == expected(kind, implicit)


def test_the_order_of_admission_does_not_matter() -> None:
    model = build("mamba2", True)
    engine = Engine(model, slots=3, window=1)
    assert run(engine, ragged(6)[::-1]) == expected("mamba2", True)[::-1]
    # Nor does what ran in the slots before.
    assert run(engine, ragged(6)) == expected("mamba2", True)


@pytest.mark.parametrize("kind", MIXERS)
def test_who_is_cancelled_is_not_heard_of_again(kind: str) -> None:
    requests = ragged(6)
    engine = Engine(build(kind, True), slots=3, capacity=40, window=1)
    numbers = [engine.submit(request) for request in requests]
    heard = []
    for step in range(1000):
        heard += engine.step()
        if step in (0, 3, 20):
            engine.cancel(numbers[{0: 5, 3: 0, 20: 2}[step]])
            last = len(heard)
            gone = numbers[{0: 5, 3: 0, 20: 2}[step]]
            heard += engine.step()
            assert all(event.request_id != gone for event in heard[last:])
        if not engine.busy:
            break
    want = expected(kind, True)
    for number in (1, 3, 4):
        tokens = [event.token for event in heard if event.request_id == number and event.token]
        assert tokens == want[number].tokens


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Request(prompt=(1, 11)), r"prompt: expected ids in \[0, 11\), got 11"),
        (
            Request(prompt=(1,), stop_tokens=(-1,)),
            r"stop_tokens: expected ids in \[0, 11\), got -1",
        ),
        (Request(prompt=(1,) * 30, max_tokens=11), r"expected at most 40 tokens .* got 30 \+ 11"),
    ],
)
def test_what_does_not_fit_is_refused(request_: Request, told: str) -> None:
    engine = Engine(build("attention", True), capacity=40)
    with pytest.raises(ValueError, match=told):
        engine.submit(request_)
    assert not engine.busy
