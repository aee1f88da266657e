"""The same requests answered in lockstep and by sweep: tokens a second, and how long one waits.

The two are held against each other, request by request. By sweep it is tried with solves that begin
at the token before, too. Read `equilm/decode/engine.py` next.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from equilm.decode.engine import Engine
from equilm.decode.generate import stream
from equilm.decode.request import Request, Sampling, Token
from equilm.nn.model import LanguageModel
from equilm.record import Record

# What an engine is told, by what its Records are called.
ENGINES: dict[str, dict[str, Any]] = {
    "lockstep": {"policy": "lockstep"},
    "sweep": {},
    "previous": {"start": "previous"},
}
UNITS = {
    "speed": "tokens/s",
    "gap_p50": "ms",
    "gap_p99": "ms",
    "evaluations": "evaluations",
    "use": "share",
    "same": "share",
}


class Differs(RuntimeError):
    """The answers depend on the order of the work."""


@dataclass(frozen=True, kw_only=True)
class TrafficConfig:
    """What is asked; more requests are waiting than can be answered, until the last has begun.

    Args:
        slots: Numbers of requests at once to try, each ≥ 1.
        rounds: Requests a slot, ≥ 2.
        prompt: Tokens of a prompt at most, ≥ 1.
        answer: Tokens of an answer at most, ≥ 1; both are drawn evenly from 1 up.
        tolerances: Each request has one of these; several make requests of mixed difficulty.
        max_steps: Evaluations a token may take, ≥ 1.
        temperature: Of the sampling, ≥ 0. A large one draws tokens evenly, as tasks do.
        seed: Of prompts and answers.
    """

    slots: tuple[int, ...] = (1, 4, 16)
    rounds: int = 8
    prompt: int = 16
    answer: int = 48
    tolerances: tuple[float, ...] = (0.01,)
    max_steps: int = 64
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.slots or min(self.slots) < 1:
            raise ValueError(f"slots: expected one or more integers >= 1, got {self.slots}")
        for name, least in (("rounds", 2), ("prompt", 1), ("answer", 1)):
            got = getattr(self, name)
            if got < least:
                raise ValueError(f"{name}: expected an integer >= {least}, got {got}")
        if not self.tolerances:
            raise ValueError("tolerances: expected one number or more, got none")


class Answered(NamedTuple):
    """What came of some requests."""

    ids: dict[int, list[int]]  # by the place of the request
    values: dict[str, float]  # by the names of UNITS


@dataclass
class _Watch:
    """What is seen while more requests are waiting than can be answered."""

    clock: Callable[[], float]
    began: float = 0.0
    seconds: float = 0.0
    steps: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    last: dict[int, float] = field(default_factory=dict)  # when a request was last heard of

    def heard(self, request: int, token: Token) -> None:
        now = self.clock()
        if request in self.last:
            self.gaps.append(1e3 * (now - self.last[request]))
        self.last[request] = now
        self.steps.append(token.steps)
        self.seconds = now - self.began


def traffic(
    model: LanguageModel, config: TrafficConfig, *, about: Mapping[str, Any] | None = None
) -> Iterator[list[Record]]:
    """Yield the Records of each number of slots and engine.

    Args:
        model: In evaluation mode.
        config: What is asked.
        about: Further fields of every Record (`model`, `commit`, `device`).

    Raises:
        Differs: If more than one request in a hundred is answered differently by sweep.
    """
    task = "tolerance " + ", ".join(f"{one:g}" for one in config.tolerances)
    for slots in config.slots:
        requests = asked(config, model.vocab_size, slots * config.rounds)
        ids: dict[int, list[int]] = {}
        for engine, settings in ENGINES.items():
            answered = answer(model, requests, slots, **settings)
            ids = ids or answered.ids
            same = sum(ids[place] == answered.ids[place] for place in ids) / len(ids)
            # Elsewhere begun, a solve ends elsewhere within the tolerance.
            if same < 0.99 and "start" not in settings:
                raise Differs(f"{slots} slots: expected the same answers, {same:.1%} of them are")
            yield [
                Record(
                    name=f"traffic_{engine}_{name}",
                    value=value,
                    unit=UNITS[name],
                    **{"task": task, "batch": slots, "seed": config.seed, **(about or {})},
                )
                for name, value in {**answered.values, "same": same}.items()
            ]


def asked(config: TrafficConfig, vocab_size: int, count: int) -> list[Request]:
    """Return random requests."""
    generator = torch.Generator().manual_seed(config.seed)

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    return [
        Request(
            prompt=tuple(below(vocab_size) for _ in range(1 + below(config.prompt))),
            max_tokens=1 + below(config.answer),
            sampling=Sampling(temperature=config.temperature, seed=number),
            tolerance=config.tolerances[number % len(config.tolerances)],
            max_steps=config.max_steps,
        )
        for number in range(count)
    ]


def answer(model: LanguageModel, requests: list[Request], slots: int, **settings: Any) -> Answered:
    """Answer all requests, `slots` at a time, and time it while others are waiting."""
    longest = max(len(request.prompt) + request.max_tokens for request in requests)
    engine = Engine(model, slots=slots, capacity=longest, **settings)
    # One request warms up; a shared CPU is timed by what this process had of it.
    for _ in stream(engine, requests[:1]):
        pass
    before = engine.counts
    watch = _Watch(time.perf_counter if model.embedding.is_cuda else time.process_time)
    places = {engine.submit(request): place for place, request in enumerate(requests)}
    ids: dict[int, list[int]] = {place: [] for place in places.values()}
    watch.began, at_end = watch.clock(), before
    while engine.busy:
        waiting = engine.counts.waiting > 0
        for event in engine.step():
            if event.token is not None:
                ids[places[event.request_id]].append(event.token.id)
                if waiting:
                    watch.heard(event.request_id, event.token)
        at_end = engine.counts if waiting else at_end
    # Answers of one token have nothing between two.
    gaps = torch.tensor(watch.gaps or [torch.nan], dtype=torch.float64)
    values = {
        "speed": len(watch.steps) / max(watch.seconds, 1e-9),
        "gap_p50": float(gaps.quantile(0.5)),
        "gap_p99": float(gaps.quantile(0.99)),
        "evaluations": sum(watch.steps) / max(len(watch.steps), 1),
        "use": (at_end.evaluations - before.evaluations)
        / max((at_end.sweeps - before.sweeps) * slots, 1),
    }
    return Answered(ids, values)
