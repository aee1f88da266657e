"""What is asked of a decoder, and what it answers: plain values, no tensors.

Read `scheduler.py` and `engine.py` next.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

MOST_STEPS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen from its logits.

    Args:
        temperature: ≥ 0; 0 takes the most likely token.
        top_k: Keep the k most likely tokens, ≥ 0; 0 keeps all.
        top_p: Keep the most likely tokens that together reach this probability, in (0, 1].
        min_p: Keep tokens at least this share as likely as the most likely one, in [0, 1].
        repetition_penalty: Divides positive and multiplies negative logits of tokens already in
            the prompt or the answer, > 0; 1 changes nothing.
        seed: Of this request alone; the same request gives the same answer in any batch.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("temperature", self.temperature >= 0, "a number >= 0"),
            ("top_k", self.top_k >= 0, "an integer >= 0"),
            ("top_p", 0 < self.top_p <= 1, "a number in (0, 1]"),
            ("min_p", 0 <= self.min_p <= 1, "a number in [0, 1]"),
            ("repetition_penalty", self.repetition_penalty > 0, "a number > 0"),
        ):
            if not good:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and how to go on from it.

    Args:
        prompt: Token ids, at least one.
        max_tokens: Tokens to generate at most, ≥ 1.
        sampling: How tokens are chosen.
        stop_tokens: Ids that end the answer; they are not part of it.
        tolerance: A token is solved when one more evaluation changes it by this share, in [0, 1];
            the dial between quality and speed. From zero the first evaluation changes all: 1.
        max_steps: Evaluations a token may take, in [1, 1,000,000].
        logprobs: How many alternatives to report with each token, ≥ 0; `None` reports nothing.
        residuals: Whether to report the residual after every evaluation.
        echo: Whether to report the tokens of the prompt too, as if they had been generated.
    """

    prompt: tuple[int, ...]
    max_tokens: int = 128
    sampling: Sampling = field(default_factory=Sampling)
    stop_tokens: tuple[int, ...] = ()
    tolerance: float = 0.01
    max_steps: int = 64
    logprobs: int | None = None
    residuals: bool = False
    echo: bool = False

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("prompt: expected at least one token, got none")
        if not (isinstance(self.max_tokens, int) and self.max_tokens >= 1):
            raise ValueError(f"max_tokens: expected an integer >= 1, got {self.max_tokens}")
        if not (isinstance(self.max_steps, int) and 1 <= self.max_steps <= MOST_STEPS):
            raise ValueError(
                f"max_steps: expected an integer in [1, {MOST_STEPS}], got {self.max_steps}"
            )
        if not 0 <= self.tolerance <= 1:
            raise ValueError(f"tolerance: expected a number in [0, 1], got {self.tolerance}")
        if self.logprobs is not None and self.logprobs < 0:
            raise ValueError(f"logprobs: expected an integer >= 0, got {self.logprobs}")


# How the solve of a token ended, by the number of its `Status`.
STATUS: tuple[Literal["converged", "capped", "cycling"], ...] = ("converged", "capped", "cycling")


class Token(NamedTuple):
    """One generated token, and what it took."""

    id: int
    # Evaluations of F until the token before it was solved, whose output chose this one; 1 for an
    # explicit model, 0 for the first token of a prompt.
    steps: int
    status: Literal["converged", "capped", "cycling"]
    logprob: float | None = None  # natural logarithm, before temperature and truncation
    top_logprobs: tuple[tuple[int, float], ...] = ()  # the most likely ids, best first
    residuals: tuple[float, ...] = ()  # of every evaluation, if asked for; none in a prompt


# Why an answer ended: a stop token (or string), or the limit.
FinishReason = Literal["stop", "length"]


class Event(NamedTuple):
    """Something that became known of a request: a token, its end, or both, or part of its prompt.

    The last token of an answer that ends for its length comes with the reason; a stop token is not
    reported, so its reason comes alone. Nothing comes after a reason or a cancellation.
    """

    request_id: int
    token: Token | None = None
    finish_reason: FinishReason | None = None
    prompt: tuple[Token, ...] = ()  # the next tokens of the prompt, if `echo` was asked for
