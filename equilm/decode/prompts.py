"""Taking prompts in: in chunks, several alike at once, equal ones once, known prefixes not at all.

The last token of a prompt, and the last few before it, are solved in a slot like those that follow:
they need not hold up the others. Read `slots.py` next.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch

from equilm import tree
from equilm.decode.evaluation import Evaluation, Prefilled
from equilm.decode.job import Job
from equilm.decode.request import STATUS, Event, Token
from equilm.decode.sampling import Odds, logprobs
from equilm.decode.snapshots import PrefixCache, thawed
from equilm.nn.mixer import State


class Prompts:
    """Makes the states that requests start to run from.

    Args:
        evaluation: F.
        capacity: Tokens that a state has room for.
        window: Tokens solved at once.
        chunk: Tokens taken in at once.
        short: Tokens before the last of a prompt that are left to a slot; none of those that are
            echoed, or of an explicit model, which takes a chunk in as fast as a token.
        cache: Snapshots kept.

    Raises:
        ValueError: For a number out of range.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        *,
        capacity: int,
        window: int,
        chunk: int,
        short: int,
        cache: int,
    ) -> None:
        for name, value, least in (("capacity", capacity, 1), ("short", short, 0)):
            if value < least:
                raise ValueError(f"{name}: expected an integer >= {least}, got {value}")
        self.evaluation, self.capacity = evaluation, capacity
        self.window, self.chunk = window, chunk
        self.short = 0 if evaluation.equilibrium is None else short
        self.cache = PrefixCache(cache)
        self.tokens = self.cached = 0  # taken in, and found in the cache
        self.sweeps = 0  # that the last chunk took

    def forget(self) -> None:
        """Know no prefix: the weights have changed."""
        self.cache.clear()

    def begin(self, job: Job) -> list[Event]:
        """Give a request the state of the longest prefix known; return the first of its echo."""
        job.state = self.evaluation.model.init_state(1, self.capacity)
        prompt, known = job.request.prompt, job.start
        if known is None and not job.request.echo:
            # Tokens that are not taken in would have no probability to tell.
            known = self.cache.longest(self.kind(job), prompt[:-1])
        if known is not None:
            job.state, job.taken = thawed(known.state, job.state), len(known.tokens)
            self.cached += job.taken
        first = Token(prompt[0], 0, "converged")
        return [Event(job.id, prompt=(first,))] if job.request.echo else []

    def is_done(self, job: Job) -> bool:
        """Whether the rest of a prompt is for a slot."""
        return job.left <= (0 if job.request.echo else self.short)

    def take_one(self, job: Job, state: State) -> None:
        """Note that a token of a prompt was solved in a slot, whose state is given."""
        job.taken += 1
        self.tokens += 1
        if job.left == 0:
            self.keep(job, state)

    def keep(self, job: Job, state: State) -> None:
        """Remember the state that a request is in: another may go on from there."""
        self.cache.put(self.kind(job), job.before, state)

    def size(self, job: Job) -> int:
        """Tokens of a request's next chunk; chunks end at multiples of `chunk`."""
        return min(job.left, self.chunk - job.taken % self.chunk)

    def kind(self, job: Job) -> Hashable:
        """What has to be equal for two prompts to be taken in together."""
        if self.evaluation.equilibrium is None:
            return None
        return job.request.tolerance, job.request.max_steps

    def take_in(self, jobs: Sequence[Job]) -> list[Event]:
        """Take in the next chunk of these requests, all of one kind; return what is echoed."""
        equal: dict[tuple[int, ...], list[Job]] = {}
        for job in jobs:
            equal.setdefault(job.request.prompt[: job.taken + self.size(job)], []).append(job)
        pieces = [prompt[group[0].taken :] for prompt, group in equal.items()]
        sizes = [len(piece) for piece in pieces]
        done = self._solve(pieces, [group[0] for group in equal.values()])
        self.tokens += sum(sizes)
        self.sweeps = done.sweeps
        events = []
        for row, (prefix, group) in enumerate(equal.items()):
            for job in group:
                if job.request.echo:
                    events.append(self._echo(job, done, row, sizes[row]))
                job.taken = len(prefix)
                job.state = tree.map_(lambda leaf, row=row: leaf[row : row + 1], done.state)
            self.cache.put(self.kind(group[0]), prefix, group[0].state)
        return events

    def _solve(self, pieces: Sequence[Sequence[int]], jobs: Sequence[Job]) -> Prefilled:
        device = self.evaluation.model.embedding.device
        longest = self.evaluation.round_up(max(map(len, pieces)))
        padded = [[*piece, *[0] * (longest - len(piece))] for piece in pieces]
        state = tree.map_(lambda *rows: torch.cat(rows), *(job.state for job in jobs))
        request = jobs[0].request
        return self.evaluation.prefill(
            torch.tensor(padded, device=device),
            torch.tensor([len(piece) for piece in pieces], device=device),
            state,
            window=self.window,
            solve=replace(
                self.evaluation.solve, tolerance=request.tolerance, max_steps=request.max_steps
            ),
        )

    def _echo(self, job: Job, done: Prefilled, row: int, size: int) -> Event:
        tokens = job.request.prompt[job.taken + 1 : job.taken + 1 + size]
        steps = done.steps_BT[row, :size].tolist()
        status = done.status_BT[row, :size].tolist()
        told: list[Odds] = [(None, ())] * size
        if job.request.logprobs is not None:
            logits_TV = self.evaluation.model.logits(done.y_BTD[row, :size])
            told = logprobs(logits_TV, tokens, job.request.logprobs)
        echoed = zip(tokens, steps, status, told, strict=True)
        return Event(job.id, prompt=tuple(Token(t, n, STATUS[s], *p) for t, n, s, p in echoed))
