"""The engine gives every request what the plain loop gives it alone, whoever runs beside it."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from equilm.decode.engine import Engine
from equilm.decode.request import Request
from equilm.decode.slots import NEAR
from equilm.nn.linear import Weight
from equilm.nn.model import MIXERS, LanguageModel
from equilm.solve import SOLVERS, Solve
from tests.decode.plain import Told, collect, ids, plain, ragged, run
from tests.nn.build import equilibrium_model, language_model

# A state that stays small and one that grows; each of the other mixers is tried once.
STATES = ("mamba2", "attention")
KINDS = [(kind, implicit) for kind in STATES for implicit in (True, False)]


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
        {"slots": 3, "check_every": 3, "short": 0},
        {"slots": 8},
        {"slots": 3, "policy": "lockstep"},
        {"slots": 2, "sweeps_between": 0.2, "chunk": 4, "short": 0},
    ],
    ids=str,
)
def test_the_engine_is_the_plain_loop(kind: str, implicit: bool, settings: dict[str, Any]) -> None:
    engine = Engine(build(kind, implicit), capacity=40, window=1, **settings)
    assert run(engine, ragged(6)) == expected(kind, implicit)


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("kind", sorted(set(MIXERS) - set(STATES)))
def test_every_mixer_may_be_decoded(kind: str, implicit: bool) -> None:
    engine = Engine(build(kind, implicit), slots=2, capacity=40, window=1, short=4)
    requests = ragged(3)
    assert run(engine, requests) == [plain(build(kind, implicit), each) for each in requests]


def test_the_order_of_admission_does_not_matter() -> None:
    model = build("mamba2", True)
    engine = Engine(model, slots=3, window=1)
    assert run(engine, ragged(6)[::-1]) == expected("mamba2", True)[::-1]
    # Nor does what ran in the slots before.
    assert run(engine, ragged(6)) == expected("mamba2", True)


@pytest.mark.parametrize("kind", STATES)
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


@pytest.mark.parametrize("kind", STATES)
def test_the_start_changes_the_work_and_not_the_answer(kind: str) -> None:
    tight = [replace(request, tolerance=1e-6, max_steps=300) for request in ragged(6)]
    engine = Engine(build(kind, True), slots=3, capacity=40, short=0, start="previous")
    told = run(engine, tight)
    zero = Engine(build(kind, True), slots=3, capacity=40, short=0)
    plainly = run(zero, tight)
    assert [ids(one) for one in told] == [ids(one) for one in plainly]
    assert engine.counts.evaluations != zero.counts.evaluations
    # Nobody's steps depend on who is beside.
    alone = Engine(build(kind, True), slots=1, capacity=40, short=0, start="previous")
    assert run(alone, tight) == told
    # A first token has nothing before it to begin at.
    assert [one.tokens[0] for one in told] == [one.tokens[0] for one in plainly]


def test_an_answer_that_is_near_is_taken_and_one_that_is_far_is_not() -> None:
    model = equilibrium_model("mamba2", num_layers=1).eval()
    with torch.no_grad():
        # Half of the tokens mean nearly the same.
        model.embedding[:6] = model.embedding[0] + 0.05 * (model.embedding[:6] - model.embedding[0])
    request = Request(prompt=(1, 2), max_tokens=20, tolerance=1e-6, max_steps=300, residuals=True)
    (told,) = run(Engine(model, start="previous"), [request])
    (zero,) = run(Engine(model), [request])
    kinds = set()
    for token, other in zip(told.tokens[1:], zero.tokens[1:], strict=True):
        near = token.residuals[0] < NEAR
        kinds.add(near)
        if not near:
            # One evaluation to find out, then the way from zero.
            assert token.steps == other.steps + 1
            assert token.residuals[1] == pytest.approx(1.0)
    assert kinds == {True, False}


def test_a_model_that_is_being_trained_is_refused() -> None:
    model = equilibrium_model("mamba2", dropout=0.1)
    with pytest.raises(ValueError, match=r"model: expected evaluation mode, call model.eval\(\)"):
        Engine(model)
    Engine(model.eval())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"capacity": 0}, "capacity: expected an integer >= 1, got 0"),
        ({"short": -1}, "short: expected an integer >= 0, got -1"),
        ({"chunk": 0}, "chunk: expected an integer >= 1, got 0"),
        ({"check_every": 0}, "check_every: expected an integer >= 1, got 0"),
        ({"prefix_cache": -1}, "prefix_cache: expected an integer >= 0, got -1"),
        ({"start": "end"}, "start: expected 'zero' or 'previous', got 'end'"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Engine(build("mamba2", True), **settings)


def test_weights_are_folded_only_while_there_is_something_to_do() -> None:
    model = build("mamba2", True)
    engine = Engine(model)
    request = Request(prompt=(1, 2), max_tokens=3)

    def folded() -> bool:
        with torch.no_grad():
            return any(part.is_prepared() for part in model.modules() if isinstance(part, Weight))

    for _ in range(2):
        number = engine.submit(request)
        assert not folded()
        engine.step()
        assert folded()
        engine.cancel(number)
        assert not folded()
    run(engine, [request])
    assert not folded()
    # So a model that is changed between two requests answers with what it is then.
    with torch.no_grad():
        model.embedding.copy_(model.embedding.flip(0))
        for part in model.modules():
            if isinstance(part, Weight):
                part.assign(0.9 * part.effective())
    assert run(engine, [request]) == [plain(model, request)]


@pytest.mark.parametrize(("kind", "implicit"), KINDS)
def test_bf16_is_near(kind: str, implicit: bool) -> None:
    model = (equilibrium_model if implicit else language_model)(kind, num_layers=1).float().eval()
    request = Request(prompt=tuple(range(10)), max_tokens=1, logprobs=11, tolerance=0.05, echo=True)
    (exact,) = run(Engine(model, capacity=20), [request])
    (near,) = run(Engine(model, capacity=20, precision="bf16"), [request])
    got, want = (
        torch.tensor([token.logprob for token in (*one.prompt[1:], *one.tokens)])
        for one in (near, exact)
    )
    assert 1e-6 < (got - want).abs().max() < 0.2
    with pytest.raises(ValueError, match="precision: expected 'float32' or 'bf16', got 'fp8'"):
        Engine(model, precision="fp8")  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "implicit"), KINDS)
@pytest.mark.parametrize(("first", "second"), [("float32", "bf16"), ("bf16", "float32")])
def test_two_precisions_at_once_are_refused(
    kind: str, implicit: bool, first: Any, second: Any
) -> None:
    model = (equilibrium_model if implicit else language_model)(kind, num_layers=1).float().eval()
    (request,) = ragged(1)
    busy, other = (Engine(model, capacity=40, precision=one) for one in (first, second))
    number = busy.submit(request)
    busy.step()
    waiting = other.submit(request)
    with pytest.raises(ValueError, match=r"precision: expected torch\..* busy with this model"):
        other.step()
    with pytest.raises(ValueError, match=r"precision: expected torch\..* busy with this model"):
        Engine(model, capacity=40, precision=second)
    busy.cancel(number)
    assert collect(other, [waiting]) == run(Engine(model, capacity=40, precision=second), [request])


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_may_drive_it(solver: str) -> None:
    solve = Solve(solver=SOLVERS[solver](), max_steps=0)  # type: ignore[arg-type]
    model = equilibrium_model("mamba2", num_layers=1, solve=solve).eval()
    requests = ragged(5, seed=1)
    want = [plain(model, request) for request in requests]
    assert run(Engine(model, slots=3, window=1, short=4), requests) == want
