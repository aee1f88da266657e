"""A request in the engine's hands: how far its prompt is taken in, and what it has answered."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from equilm.decode.request import Event, Request, Token
from equilm.decode.sampling import Choice
from equilm.nn.mixer import State


@dataclass
class Job:
    """Changed by the engine alone."""

    id: int
    request: Request
    state: State = None  # after `taken` tokens of the prompt; given away when it starts to run
    taken: int = 0
    answer: list[int] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)  # of the token being solved
    seen_V: Tensor | None = None  # tokens so far, where they are penalised

    @property
    def left(self) -> int:
        """Tokens to be taken in before the last of the prompt, which is the first to be solved."""
        return len(self.request.prompt) - 1 - self.taken

    @property
    def choice(self) -> Choice:
        """Who chooses the next token."""
        position = len(self.request.prompt) + len(self.answer)
        return Choice(self.request.sampling, position)

    def answered(self, token: Token) -> Event:
        """Note the next token of the answer; return what is to be told of it."""
        self.residuals = []
        if token.id in self.request.stop_tokens:
            return Event(self.id, None, "stop")
        self.answer.append(token.id)
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
