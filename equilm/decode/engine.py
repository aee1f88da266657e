"""The engine: requests in, tokens out, many at a time, nobody waiting for a neighbour's hard token.

    engine = Engine(model, slots=8)
    engine.submit(Request(prompt=(1, 2, 3)))
    while engine.busy:
        for event in engine.step(): …

Not thread-safe. The queue is `scheduler.py`, the tensors are in `slots.py`, prompts in
`prompts.py`. Read `generate.py` next.
"""

from contextlib import ExitStack
from typing import Literal

import torch

from equilm.decode.counts import Counts as Counts
from equilm.decode.evaluation import Evaluation, Weights
from equilm.decode.job import Job, choose, simple_draws, tell
from equilm.decode.pace import pace_of
from equilm.decode.prompts import Prompts
from equilm.decode.request import STATUS, Event, Request, Token
from equilm.decode.sampling import NOTHING
from equilm.decode.scheduler import Policy, Scheduler
from equilm.decode.slots import Reading, Slots, Start
from equilm.decode.snapshots import Snapshot, frozen, grows
from equilm.nn.model import LanguageModel


class Engine:
    """Decodes up to `slots` requests at once.

    Args:
        model: In evaluation mode; its weights must not change while the engine is busy.
        slots: Requests prefilled or running at once, ≥ 1.
        capacity: Tokens of a prompt and its answer, ≥ 1, where the state of the model grows with
            them; others take any number.
        policy: "sweep", or "lockstep" to compare with; see `Scheduler`.
        window: Tokens of a prompt that are solved at once, ≥ 1; `None` suits the device, here and
            below (`pace.py`).
        chunk: Tokens of a prompt that are taken in between sweeps of the running, ≥ 1.
        short: Tokens before the last of a prompt that are solved one by one in its slot, as those
            of the answer, ≥ 0; only what is longer is taken in by chunks.
        sweeps_between: Sweeps of the running for each sweep over somebody's prompt, ≥ 0.
        start: Where the solve of a token begins: at "zero", or at the answer to the "previous" one
            unless one evaluation finds it far. The answer is the same to the tolerance.
        check_every: Sweeps between two looks at what has settled, ≥ 1.
        precision: The type of products; "bf16" casts the weights once, as in training.
        weights: Mamba2's projections rounded to "fp8", a scale for each output, or as they are.
        prefix_cache: States kept for prompts that begin alike, ≥ 0. Where one is used the answer
            is the same to the tolerance.

    Raises:
        ValueError: For a number out of range, a model that is being trained, or one that another
            engine is busy with in another precision.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        slots: int = 8,
        capacity: int = 2048,
        policy: Policy = "sweep",
        window: int | None = None,
        chunk: int | None = None,
        short: int = 16,
        sweeps_between: float = 1.0,
        start: Start = "zero",
        check_every: int | None = None,
        precision: Literal["float32", "bf16"] = "float32",
        weights: Weights = "own",
        prefix_cache: int = 0,
    ) -> None:
        if precision not in ("float32", "bf16"):
            raise ValueError(f"precision: expected 'float32' or 'bf16', got {precision!r}")
        self.model, self.precision = model, precision
        self.scheduler = Scheduler(slots=slots, policy=policy, sweeps_between=sweeps_between)
        self.evaluation = Evaluation(model, weights=weights)
        implicit = self.evaluation.equilibrium is not None
        asked = {"window": window, "chunk": chunk, "check_every": check_every}
        pace = pace_of(model.embedding.device, implicit=implicit, **asked)
        taken = {"window": pace.window, "chunk": pace.chunk, "short": short, "cache": prefix_cache}
        self.prompts = Prompts(self.evaluation, capacity=capacity, **taken)
        with torch.no_grad(), self._computing():
            self.evaluation.check_precision()
            room = {"rows": slots, "capacity": capacity, "check_every": pace.check_every}
            self.slots = Slots(self.evaluation, start=start, **room)
        self.capacity = capacity if grows(self.slots.state) else None
        self._jobs: dict[int, Job] = {}
        self._held: list[ExitStack] = []
        self._next_id = self._tokens = self._sweeps = self._evaluations = 0

    @property
    def busy(self) -> bool:
        """Whether anything is waiting or running."""
        return self.scheduler.busy

    @property
    def counts(self) -> Counts:
        """Where it stands."""
        return Counts(
            waiting=len(self.scheduler.waiting),
            prefilling=len(self.scheduler.prefilling),
            running=len(self.scheduler.running),
            slots=self.scheduler.slots,
            requests=self._next_id,
            tokens=self._tokens,
            prompt_tokens=self.prompts.tokens,
            cached_tokens=self.prompts.cached,
            sweeps=self._sweeps,
            evaluations=self._evaluations,
        )

    def submit(self, request: Request, *, start: Snapshot | None = None) -> int:
        """Let a request wait for a slot.

        Args:
            request: What to answer.
            start: Goes on from there; its tokens must be the first of the prompt, and not all. How
                tightly they were solved is the caller's to know.

        Returns:
            The id that its events carry.

        Raises:
            ValueError: For a token that the model does not know, or too many of them; for a start
                that does not fit.
        """
        vocab = self.model.vocab_size
        for name, tokens in (("prompt", request.prompt), ("stop_tokens", request.stop_tokens)):
            for token in tokens:
                if not 0 <= token < vocab:
                    raise ValueError(f"{name}: expected ids in [0, {vocab}), got {token}")
        length = len(request.prompt) + request.max_tokens
        if self.capacity is not None and length > self.capacity:
            raise ValueError(
                f"prompt and max_tokens: expected at most {self.capacity} tokens together, "
                f"got {len(request.prompt)} + {request.max_tokens}"
            )
        known = () if start is None else start.tokens
        if known != request.prompt[: len(known)] or len(known) == len(request.prompt):
            raise ValueError("start: expected the first tokens of the prompt, and not all of them")
        if start is not None and request.echo:
            raise ValueError("echo: expected none with a start, whose tokens are not looked at")
        number, self._next_id = self._next_id, self._next_id + 1
        self._jobs[number] = Job(number, request, start=start)
        self.scheduler.add(number)
        return number

    def cancel(self, request_id: int) -> None:
        """Forget a request, waiting or running; nothing more is told of it."""
        if request_id in self._jobs:
            self._remove(self._jobs[request_id])
            self._release()

    def snapshot(self, request_id: int) -> Snapshot:
        """Return where a running request stands: its tokens but the last, and the state after them.

        Raises:
            ValueError: If it does not run.
        """
        if request_id not in self.scheduler.running:
            raise ValueError(f"request_id: expected one that runs, got {request_id}")
        tokens = self._jobs[request_id].before
        state = self.slots.state_of(self.scheduler.running.index(request_id))
        return Snapshot(tokens, frozen(state, len(tokens)))

    @torch.no_grad()
    def step(self) -> list[Event]:
        """Sweep over the running, or take in a chunk of a prompt; return what became known."""
        events: list[Event] = []
        if not self.busy:
            return events
        with self._computing():
            if not self._held:
                # The weights stay folded as long as there is something to do.
                if self.evaluation.refresh():
                    self.slots.forget()
                    self.prompts.forget()
                with ExitStack() as held:
                    held.enter_context(self.evaluation.held())
                    self._held.append(held.pop_all())
            events += self._admit()
            if self.scheduler.turn() == "prefill":
                events += self._prefill()
            else:
                events += self._sweep()
        self._release()
        return events

    def _computing(self) -> torch.autocast:
        device = self.model.embedding.device.type
        half = self.precision == "bf16"
        # A graph must not read what autocast keeps for the length of one step.
        return torch.autocast(device, torch.bfloat16, enabled=half, cache_enabled=device == "cpu")

    def _admit(self) -> list[Event]:
        events = []
        for job in [self._jobs[number] for number in self.scheduler.admit()]:
            events += self.prompts.begin(job)
            if self.prompts.is_done(job):
                self._start(job)
        return events

    def _prefill(self) -> list[Event]:
        jobs = {number: self._jobs[number] for number in self.scheduler.prefilling}
        together = self.scheduler.companions(
            {number: self.prompts.size(job) for number, job in jobs.items()},
            {number: self.prompts.kind(job) for number, job in jobs.items()},
        )
        taking = [jobs[number] for number in together]
        events = self.prompts.take_in(taking)
        self.scheduler.took_in(together, self.prompts.sweeps)
        for job in filter(self.prompts.is_done, taking):
            self._start(job)
        return events

    def _start(self, job: Job) -> None:
        """Let the rest of a prompt be solved in a slot."""
        request, slot = job.request, self.scheduler.start(job.id)
        self.slots.place(slot, job.state, tolerance=request.tolerance, max_steps=request.max_steps)
        self.slots.feed([slot], [request.prompt[job.taken]])
        job.state = None

    def _sweep(self) -> list[Event]:
        jobs = [self._jobs[number] for number in self.scheduler.running]
        reading = self.slots.sweep(self.scheduler.width)
        self._sweeps += self.slots.check_every
        for slot, job in enumerate(jobs):
            if job.request.residuals:
                new = reading.steps[slot] - len(job.residuals)
                job.residuals += reading.residuals[slot][:new]
        settled = [slot for slot in range(len(jobs)) if reading.ready[slot]]
        ready = self.scheduler.swept(self.slots.check_every, settled)
        return self._move_on({slot: jobs[slot] for slot in ready}, reading) if ready else []

    def _move_on(self, jobs: dict[int, Job], reading: Reading) -> list[Event]:
        """Go on to the next token in each of these slots, or end the request."""
        self.slots.commit(list(jobs))
        self._evaluations += sum(reading.steps[slot] for slot in jobs)
        answering = {slot: job for slot, job in jobs.items() if job.left == 0}
        fed = {slot: self._go_through_prompt(slot) for slot in jobs if slot not in answering}
        if fed:
            self.slots.feed(list(fed), list(fed.values()))
        events = self._answer(answering, reading) if answering else []
        ended = {event.request_id for event in events if event.finish_reason is not None}
        for number in ended:
            job = self._jobs[number]
            self.prompts.keep(job, self.slots.state_of(self.scheduler.running.index(number)))
            self._remove(job)
        return events

    def _go_through_prompt(self, slot: int) -> int:
        """Return the next token of a prompt, after one of its last few was solved in a slot."""
        job = self._jobs[self.scheduler.running[slot]]
        self.prompts.take_one(job, self.slots.state_of(slot))
        job.residuals = []
        return job.request.prompt[job.taken]

    def _answer(self, jobs: dict[int, Job], reading: Reading) -> list[Event]:
        """Choose the next token of each of these answers; return what is to be told of it.

        All go on with it, also those that it ends: whoever takes their slot begins anew.
        """
        rows, asking = list(jobs), list(jobs.values())
        draws = simple_draws(asking)
        if draws is not None:
            ids, told = self.slots.answer(rows, draws), [NOTHING] * len(rows)
        else:
            logits_NV = self.evaluation.logits(self.slots.outputs(rows))
            ids = choose(logits_NV, asking)
            told = tell(logits_NV, ids, asking)
            self.slots.feed(rows, ids)
        events = []
        for (slot, job), number, odds in zip(jobs.items(), ids, told, strict=True):
            status = STATUS[reading.status[slot]]
            token = Token(number, reading.steps[slot], status, *odds, tuple(job.residuals))
            events.append(job.answered(token))
        self._tokens += sum(event.token is not None for event in events)
        return events

    def _remove(self, job: Job) -> None:
        del self._jobs[job.id]
        move = self.scheduler.remove(job.id)
        if move is not None:
            self.slots.move(*move)

    def _release(self) -> None:
        if not self.busy and self._held:
            self._held.pop().close()
