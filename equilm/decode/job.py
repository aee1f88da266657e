"""A request in the engine's hands: how far its prompt is taken in, and what it has answered."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from equilm.decode.request import Event, Request, Token
from equilm.decode.sampling import Choice, Odds, is_simple, logprobs, sample, uniform
from equilm.decode.snapshots import Snapshot
from equilm.nn.mixer import State


@dataclass
class Job:
    """Changed by the engine alone."""

    id: int
    request: Request
    start: Snapshot | None = None
    state: State = None  # after `taken` tokens of the prompt; given away when it starts to run
    taken: int = 0  # never the last of them, which is the first whose output matters
    answer: list[int] = field(default_factory=list)  # with the token that stopped it
    residuals: list[float] = field(default_factory=list)  # of the token being solved
    seen_V: Tensor | None = None  # tokens so far, where they are penalised

    @property
    def left(self) -> int:
        """Tokens to be taken in before the last of the prompt."""
        return len(self.request.prompt) - 1 - self.taken

    @property
    def before(self) -> tuple[int, ...]:
        """Tokens before the one that is being solved, or taken in next."""
        if not self.answer:
            return self.request.prompt[: self.taken]
        return (*self.request.prompt, *self.answer)[:-1]

    @property
    def choice(self) -> Choice:
        """Who chooses the next token."""
        position = len(self.request.prompt) + len(self.answer)
        return Choice(self.request.sampling, position)

    def answered(self, token: Token) -> Event:
        """Note the next token of the answer; return what is to be told of it."""
        self.residuals = []
        self.answer.append(token.id)
        if token.id in self.request.stop_tokens:
            return Event(self.id, None, "stop")
        ends = len(self.answer) == self.request.max_tokens
        return Event(self.id, token, "length" if ends else None)

    def see(self, vocab_size: int, device: torch.device) -> Tensor:
        """Return which tokens were seen, noting the newest."""
        if self.seen_V is None:
            self.seen_V = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self.seen_V[torch.tensor(self.request.prompt, device=device)] = True
        if self.answer:
            self.seen_V[self.answer[-1]] = True
        return self.seen_V


def simple_draws(jobs: Sequence[Job]) -> list[tuple[float, float]] | None:
    """Return (temperature, uniform number) of each, if nobody wants more than these can give."""
    wants = [job.request for job in jobs]
    if not all(is_simple(one.sampling) and one.logprobs is None for one in wants):
        return None
    choices = [job.choice for job in jobs]
    return [(s.temperature, uniform(s.seed, position)) for s, position in choices]


def choose(logits_NV: Tensor, jobs: Sequence[Job]) -> list[int]:
    """Return the next token of each."""
    seen_NV = None
    if any(job.request.sampling.repetition_penalty != 1 for job in jobs):
        vocab, device = logits_NV.shape[1], logits_NV.device
        seen_NV = torch.stack([job.see(vocab, device) for job in jobs])
    return sample(logits_NV, [job.choice for job in jobs], seen_NV).tolist()


def tell(logits_NV: Tensor, ids: Sequence[int], jobs: Sequence[Job]) -> list[Odds]:
    """Return what each wants to know of the chances of its next token."""
    wanted = [job.request.logprobs for job in jobs]
    counts = [count for count in wanted if count is not None]
    if not counts:
        return [(None, ())] * len(jobs)
    found = logprobs(logits_NV, ids, max(counts))
    return [
        (None, ()) if count is None else (own, tops[:count])
        for count, (own, tops) in zip(wanted, found, strict=True)
    ]
