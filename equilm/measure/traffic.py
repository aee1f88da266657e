"""The same requests answered in lockstep and by sweep: tokens a second, and how long one waits.

The two are held against each other, request by request. By sweep it is tried with solves that begin
at the token before, too. Read `equilm/decode/engine.py` next.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from equilm.decode.engine import Engine
from equilm.decode.generate import stream
from equilm.decode.request import Request, Sampling
from equilm.nn.linear import prepared
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


class Run:
    """One engine answering requests; what it does is timed while more wait than it can answer.

    Args:
        model: In evaluation mode.
        requests: All are submitted at once.
        slots: Requests at once.
        settings: Of the engine.
    """

    def __init__(
        self, model: LanguageModel, requests: list[Request], slots: int, **settings: Any
    ) -> None:
        longest = max(len(request.prompt) + request.max_tokens for request in requests)
        self.engine = Engine(model, slots=slots, capacity=longest, **settings)
        # A shared CPU is timed by what this process had of it.
        self.clock = time.perf_counter if model.embedding.is_cuda else time.process_time
        for _ in stream(self.engine, requests[:1]):
            pass  # to warm up
        self.before = self.after = self.engine.counts
        self.places = {self.engine.submit(request): at for at, request in enumerate(requests)}
        self.ids: dict[int, list[int]] = {place: [] for place in self.places.values()}
        self.seconds = 0.0  # of its own steps
        self.steps: list[int] = []
        self.gaps: list[float] = []
        self.last: dict[int, float] = {}  # when a request was last heard of

    def step(self) -> None:
        """Let the engine work a little; note what came of it, and when."""
        waiting = self.engine.counts.waiting > 0
        began = self.clock()
        events = self.engine.step()
        self.seconds += self.clock() - began if waiting else 0.0
        self.after = self.engine.counts if waiting else self.after
        for number, token, _, _ in events:
            if token is None:
                continue
            self.ids[self.places[number]].append(token.id)
            if waiting:
                self.steps.append(token.steps)
                if number in self.last:
                    self.gaps.append(1e3 * (self.seconds - self.last[number]))
                self.last[number] = self.seconds

    def values(self) -> dict[str, float]:
        """Return what came out, by the names of UNITS."""
        # Answers of one token have nothing between two.
        gaps = torch.tensor(self.gaps or [torch.nan], dtype=torch.float64)
        done = self.after.sweeps - self.before.sweeps
        needed = self.after.evaluations - self.before.evaluations
        return {
            "speed": len(self.steps) / max(self.seconds, 1e-9),
            "gap_p50": float(gaps.quantile(0.5)),
            "gap_p99": float(gaps.quantile(0.99)),
            "evaluations": sum(self.steps) / max(len(self.steps), 1),
            "use": needed / max(done * self.after.slots, 1),
        }


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
        runs = answer(model, requests, slots)
        for engine, run in runs.items():
            ids = runs["lockstep"].ids
            same = sum(ids[place] == run.ids[place] for place in ids) / len(ids)
            # Elsewhere begun, a solve ends elsewhere within the tolerance.
            if same < 0.99 and "start" not in ENGINES[engine]:
                raise Differs(f"{slots} slots: expected the same answers, {same:.1%} of them are")
            yield [
                Record(
                    name=f"traffic_{engine}_{name}",
                    value=value,
                    unit=UNITS[name],
                    **{"task": task, "batch": slots, "seed": config.seed, **(about or {})},
                )
                for name, value in {**run.values(), "same": same}.items()
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


@torch.no_grad()
def answer(model: LanguageModel, requests: list[Request], slots: int) -> dict[str, Run]:
    """Let all engines answer the requests, in turns, so that what else runs slows them alike."""
    # Held here, or the engine that is done first would unfold the weights of the others.
    with prepared(model):
        runs = {name: Run(model, requests, slots, **each) for name, each in ENGINES.items()}
        while open_ := [run for run in runs.values() if run.engine.busy]:
            for run in open_:
                run.step()
    return runs
