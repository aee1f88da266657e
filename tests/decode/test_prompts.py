"""Prompts are taken in by windows, chunks and groups; once where equal, not at all where kept."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from equilm.decode.engine import Engine
from equilm.decode.request import Request, Sampling
from equilm.nn.linear import Linear
from equilm.nn.model import MIXERS, LanguageModel
from tests.decode.plain import collect, ids, plain, run
from tests.nn.build import equilibrium_model, language_model, tokens_of
from tests.tolerance import assert_close

# A state that stays small and one that grows; each of the other mixers is tried once.
STATES = ("mamba2", "attention")
KINDS = [(kind, implicit) for kind in STATES for implicit in (True, False)]
GREEDY = Sampling(temperature=0)


@cache
def build(kind: str, implicit: bool) -> LanguageModel:
    """Return a small model in float64."""
    return (equilibrium_model if implicit else language_model)(kind, num_layers=1).eval()


def asked(length: int, *, seed: int = 0, **settings: Any) -> Request:
    """Return a request with a random prompt, solved tightly."""
    prompt = tuple(tokens_of(1, length, seed=seed)[0].tolist())
    tight = {"tolerance": 1e-7, "max_steps": 100, "max_tokens": 3, "sampling": GREEDY}
    return Request(prompt=prompt, **{**tight, **settings})


@pytest.mark.parametrize(("kind", "implicit"), KINDS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"short": 0}, {"short": 3, "chunk": 5, "window": 3, "sweeps_between": 0.2}],
    ids=str,
)
def test_windows_and_chunks_give_the_plain_answer(
    kind: str, implicit: bool, settings: dict[str, Any]
) -> None:
    model = build(kind, implicit)
    requests = [asked(length, seed=length) for length in (2, 9, 18)]
    engine = Engine(model, slots=4, capacity=40, **settings)
    told = run(engine, requests)
    assert [ids(one) for one in told] == [ids(plain(model, each)) for each in requests]
    assert engine.counts.prompt_tokens == sum(len(each.prompt) - 1 for each in requests)
    # The last token of each prompt is solved in a slot.
    assert engine.counts.tokens == 3 * len(requests)


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("kind", sorted(set(MIXERS) - set(STATES)))
def test_every_mixer_takes_prompts_in_and_goes_on_from_a_prefix(kind: str, implicit: bool) -> None:
    model = build(kind, implicit)
    engine = Engine(model, slots=2, capacity=40, chunk=8, short=2, prefix_cache=9)
    first = asked(19)
    more = replace(first, prompt=(*first.prompt[:17], 1, 2))
    assert [ids(run(engine, [each])[0]) for each in (first, more)] == [
        ids(plain(model, each)) for each in (first, more)
    ]
    assert engine.counts.cached_tokens == 16


@pytest.mark.parametrize("kind", STATES)
def test_who_shares_a_chunk_gets_what_it_gets_alone(kind: str) -> None:
    model = build(kind, True)
    loose: dict[str, Any] = {"tolerance": 0.02, "max_steps": 12}
    requests = [asked(length, seed=length, **loose) for length in (17, 20, 25, 30)]
    requests.append(asked(26, seed=26))
    settings: dict[str, Any] = {"capacity": 40, "window": 8, "chunk": 20, "short": 4}
    together = run(Engine(model, slots=5, **settings), requests)
    alone = [run(Engine(model, slots=1, **settings), [each])[0] for each in requests]
    assert together == alone


def test_equal_prompts_are_taken_in_once() -> None:
    engine = Engine(build("mamba2", True), slots=4, chunk=8, short=0)
    one = asked(20)
    told = run(engine, [replace(one, sampling=Sampling(seed=seed)) for seed in range(4)])
    assert engine.counts.prompt_tokens == 19
    assert len({tuple(ids(each)) for each in told}) == 4
    alone = Engine(build("mamba2", True), slots=1, chunk=8, short=0)
    assert run(alone, [replace(one, sampling=Sampling(seed=2))]) == told[2:3]


@pytest.mark.parametrize("kind", STATES)
def test_a_prefix_is_kept_for_later(kind: str) -> None:
    model = build(kind, True)
    engine = Engine(model, slots=2, capacity=60, chunk=8, short=3, prefix_cache=9)
    first = asked(21)
    other = replace(first, prompt=(*first.prompt[:17], *asked(9, seed=3).prompt))
    (told,) = run(engine, [first])
    assert engine.counts.cached_tokens == 0 and engine.counts.prompt_tokens == 20
    assert run(engine, [first]) == [told]
    # The whole prompt but its last token was there.
    assert engine.counts.cached_tokens == 20 and engine.counts.prompt_tokens == 20
    assert run(engine, [other]) == run(Engine(model, capacity=60, chunk=8, short=3), [other])
    # Chunks end at multiples of 8, so 16 tokens of the 17 were there.
    assert engine.counts.cached_tokens == 20 + 16
    # A conversation goes on from where its last answer ended.
    more = replace(first, prompt=(*first.prompt, *ids(told), 1, 2, 3))
    (longer,) = run(engine, [more])
    assert engine.counts.cached_tokens == 20 + 16 + 23
    assert ids(longer) == ids(plain(model, more))
    # Whoever asks for another tolerance does not get it.
    run(engine, [replace(first, tolerance=1e-6)])
    assert engine.counts.cached_tokens == 20 + 16 + 23


def test_the_least_recently_used_prefix_leaves() -> None:
    engine = Engine(build("mamba2", False), slots=1, prefix_cache=2)
    requests = [asked(9, seed=seed, max_tokens=1) for seed in range(3)]
    # Each leaves one state: before its last token; the one before the answer is the next.
    run(engine, requests[:1])
    assert len(engine.prompts.cache) == 2
    run(engine, requests[1:2])
    run(engine, requests[:1])
    assert engine.counts.cached_tokens == 0
    run(engine, requests[:1])
    assert engine.counts.cached_tokens == 8


def test_an_answer_that_was_stopped_is_kept_whole() -> None:
    model = build("mamba2", True)
    engine = Engine(model, slots=1, prefix_cache=4)
    first = asked(12, max_tokens=6)
    answer = ids(run(engine, [first])[0])
    stopped = replace(first, stop_tokens=(answer[-1],))
    short = ids(run(engine, [stopped])[0])
    more = replace(first, prompt=(*first.prompt, *short, answer[-1], 5, 6))
    before = engine.counts.cached_tokens
    assert ids(run(engine, [more])[0]) == ids(plain(model, more))
    assert engine.counts.cached_tokens - before >= len(first.prompt) + len(short)


@pytest.mark.parametrize("kind", STATES)
def test_fork_and_roll_back(kind: str) -> None:
    model = build(kind, True)
    engine = Engine(model, slots=3, capacity=60, chunk=8, short=9)
    first = asked(20, max_tokens=7)
    number = engine.submit(first)
    heard: list[int] = []
    while len(heard) < 5:
        heard += [event.token.id for event in engine.step() if event.token]
    kept = engine.snapshot(number)
    assert kept.tokens == (*first.prompt, *heard)[:-1]
    before = engine.counts.prompt_tokens
    # Another goes on from there, with other words, while the first runs on.
    fork = replace(first, prompt=(*kept.tokens, (heard[-1] + 1) % 11), max_tokens=4)
    forked = engine.submit(fork, start=kept)
    told = collect(engine, [number, forked])
    assert heard + ids(told[0]) == ids(plain(model, first))
    assert ids(told[1]) == ids(plain(model, fork))
    assert engine.counts.prompt_tokens == before
    # And the snapshot is what it was.
    back = replace(first, prompt=(*kept.tokens, heard[-1]), max_tokens=2)
    again = collect(engine, [engine.submit(back, start=kept)])
    assert heard + ids(again[0]) == ids(plain(model, first))


def test_a_start_that_does_not_fit() -> None:
    engine = Engine(build("mamba2", True), short=0)
    number = engine.submit(asked(5))
    with pytest.raises(ValueError, match=f"request_id: expected one that runs, got {number}"):
        engine.snapshot(number)
    engine.step()
    engine.step()
    kept = engine.snapshot(number)
    assert kept.tokens == asked(5).prompt[:4]
    for prompt in (kept.tokens, (*kept.tokens[:3], kept.tokens[3] ^ 1, 1)):
        with pytest.raises(ValueError, match="start: expected the first tokens of the prompt"):
            engine.submit(replace(asked(5), prompt=prompt), start=kept)
    with pytest.raises(ValueError, match="echo: expected none with a start"):
        engine.submit(asked(5, echo=True), start=kept)


@pytest.mark.parametrize(("kind", "implicit"), KINDS)
def test_an_echo_tells_what_the_model_thought_of_the_prompt(kind: str, implicit: bool) -> None:
    model = build(kind, implicit)
    request = asked(13, echo=True, logprobs=2, residuals=True)
    engine = Engine(model, slots=2, capacity=40, chunk=5, prefix_cache=3)
    for told in run(engine, [request, asked(1, echo=True), request])[::2]:
        assert [token.id for token in told.prompt] == [*request.prompt]
        assert told.prompt[0] == (request.prompt[0], 0, "converged", None, (), ())
        everything = torch.tensor([[*request.prompt, *ids(told)]])
        with torch.no_grad():
            logprobs_TV = model(everything)[0][0].log_softmax(-1)
        tokens = [*told.prompt, *told.tokens]
        got = torch.tensor([token.logprob for token in tokens[1:]], dtype=torch.float64)
        want = logprobs_TV[:-1].gather(1, everything[0, 1:, None])[:, 0]
        assert_close("equilibrium", got, want)
        for token, row_V in zip(tokens[1:], logprobs_TV[:-1], strict=True):
            assert [one for one, _ in token.top_logprobs] == row_V.topk(2).indices.tolist()
            assert token.steps > 1 if implicit else token.steps == 1
        for token in told.tokens:
            assert len(token.residuals) == token.steps
            if implicit:
                assert token.residuals[-1] <= 1e-7 < token.residuals[-2]
    assert engine.counts.cached_tokens == 0


@torch.no_grad()
def test_what_is_kept_is_forgotten_with_the_weights_that_made_it() -> None:
    model, request = equilibrium_model("mamba2", num_layers=1).eval(), asked(20)
    engine = Engine(model, prefix_cache=4)
    before = run(engine, [request])
    assert run(engine, [request]) == before and engine.counts.cached_tokens
    cached = engine.counts.cached_tokens
    for part in model.modules():
        if isinstance(part, Linear):
            part.assign(part.effective().flip(0))
    after = run(engine, [request])
    assert [ids(one) for one in after] == [ids(plain(model, request))] != [ids(before[0])]
    assert engine.counts.cached_tokens == cached
