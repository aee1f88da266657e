"""What decoding means: one request, alone, token by token through the model's own forward."""

from dataclasses import replace
from typing import NamedTuple

import torch

from equilm.decode.engine import Engine
from equilm.decode.request import STATUS, Event, Request, Sampling, Token
from equilm.decode.sampling import Choice, sample
from equilm.nn.equilibrium import Equilibrium, observed
from equilm.nn.model import LanguageModel
from tests.nn.build import tokens_of


class Told(NamedTuple):
    """All that was told of a request."""

    tokens: list[Token]
    reason: str
    prompt: list[Token]


@torch.no_grad()
def plain(model: LanguageModel, request: Request) -> Told:
    """Answer a request with `model(token, state)` in a loop."""
    if isinstance(model.core, Equilibrium):
        model.core.solve = replace(
            model.core.solve, window=1, tolerance=request.tolerance, max_steps=request.max_steps
        )
    state = model.init_state(1, 256)
    answer: list[Token] = []
    for place in range(len(request.prompt) + request.max_tokens - 1):
        given = [*request.prompt, *(token.id for token in answer)][place]
        with observed(model) as found:
            logits_11V, state = model(torch.tensor([[given]]), state)
        if place < len(request.prompt) - 1:
            continue
        choice = Choice(request.sampling, len(request.prompt) + len(answer))
        token = int(sample(logits_11V[:, 0], [choice]))
        if token in request.stop_tokens:
            return Told(answer, "stop", [])
        steps, status = (int(found[0].steps), int(found[0].status)) if found else (1, 0)
        answer.append(Token(token, steps, STATUS[status]))
    return Told(answer, "length", [])


def ids(told: Told) -> list[int]:
    """Return the ids of the answer."""
    return [token.id for token in told.tokens]


def run(engine: Engine, requests: list[Request]) -> list[Told]:
    """Answer requests with an engine; all are submitted at once."""
    return collect(engine, [engine.submit(request) for request in requests])


def collect(engine: Engine, numbers: list[int]) -> list[Told]:
    """Step an engine until it is done."""
    heard: dict[int, list[Event]] = {number: [] for number in numbers}
    for _ in range(10_000):
        if not engine.busy:
            break
        for event in engine.step():
            heard[event.request_id].append(event)
    assert not engine.busy
    told = []
    for events in heard.values():
        # Nothing comes after a reason.
        assert [event.finish_reason is None for event in events[:-1]] == [True] * len(events[:-1])
        reason = events[-1].finish_reason
        assert reason is not None
        told.append(
            Told(
                [event.token for event in events if event.token is not None],
                reason,
                [token for event in events for token in event.prompt],
            )
        )
    return told


def ragged(count: int, *, seed: int = 0, longest: int = 12, **settings: object) -> list[Request]:
    """Return requests of mixed lengths, tolerances and limits of steps."""
    draw = torch.Generator().manual_seed(seed)

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=draw))

    return [
        Request(
            prompt=tuple(tokens_of(1, 1 + below(longest), seed=100 * seed + number)[0].tolist()),
            max_tokens=1 + below(9),
            sampling=Sampling(temperature=number % 2 * 0.8, seed=number),
            tolerance=(1e-2, 1e-5)[below(2)],
            max_steps=(4, 300)[below(2)],
            **settings,  # type: ignore[arg-type]
        )
        for number in range(count)
    ]
