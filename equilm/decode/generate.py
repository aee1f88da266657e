"""Prompts in, answers out: a client of the engine, whole or as they come.

    answers = equilm.generate(model, ["To be, or not"], tokenizer=Bytes(), max_tokens=40)
    print(answers[0].text, [token.steps for token in answers[0].tokens])

Read `text.py` next.
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from equilm.decode.engine import Engine
from equilm.decode.request import FinishReason, Request, Sampling, Token
from equilm.decode.text import Ids, TextStream, Tokenizer, check_vocabulary, encode_prompt
from equilm.nn.model import LanguageModel


class Piece(NamedTuple):
    """What became known of one answer. The text of a token may come with a later one."""

    place: int  # of the request among those asked
    text: str = ""
    token: Token | None = None
    finish_reason: FinishReason | None = None


class Generation(NamedTuple):
    """An answer, and what each of its tokens took."""

    text: str  # without the stop string, if it ended with one
    tokens: tuple[Token, ...]
    finish_reason: FinishReason


def generate(
    model: LanguageModel,
    prompts: Sequence[str | Sequence[int]],
    *,
    tokenizer: Tokenizer | None = None,
    max_tokens: int = 128,
    sampling: Sampling | None = None,
    samples: int = 1,
    stop: Sequence[str] = (),
    stop_tokens: Sequence[int] | None = None,
    tolerance: float = 0.01,
    max_steps: int = 64,
    slots: int = 8,
    window: int | None = None,
) -> list[Generation]:
    """Answer prompts; each gets what it would get alone.

    Args:
        model: In evaluation mode.
        prompts: Texts, or token ids; an empty one begins as the tokenizer says.
        tokenizer: Of the texts; by default the text of a token is its number.
        max_tokens: Of an answer, ≥ 1.
        sampling: How tokens are chosen; sample j of a prompt adds j to the seed.
        samples: Answers to each prompt, ≥ 1; the prompt is taken in once.
        stop: Strings that end an answer.
        stop_tokens: Ids that end it; by default those of the tokenizer.
        tolerance: When a token is solved, relative, ≥ 0: the dial between quality and speed.
        max_steps: Evaluations a token may take, ≥ 1.
        slots: Answers at once, ≥ 1.
        window: Tokens of a prompt solved at once, ≥ 1; `None` suits the device.

    Returns:
        The answers: prompt i's sample j at i · samples + j.

    Raises:
        ValueError: For a setting, prompt or token out of range; a tokenizer of more ids than the
            model knows; one prompt instead of a list of them.
    """
    tokenizer, sampling = tokenizer or Ids(), sampling or Sampling()
    check_vocabulary(tokenizer, model.vocab_size)
    if isinstance(prompts, str) or any(isinstance(prompt, int) for prompt in prompts):
        raise ValueError(f"prompts: expected a list of prompts, got one; write [{prompts!r}]")
    if samples < 1:
        raise ValueError(f"samples: expected an integer >= 1, got {samples}")
    requests = [
        Request(
            prompt=_ids_of(prompt, tokenizer),
            max_tokens=max_tokens,
            sampling=replace(sampling, seed=sampling.seed + sample),
            stop_tokens=tokenizer.stop_tokens if stop_tokens is None else tuple(stop_tokens),
            tolerance=tolerance,
            max_steps=max_steps,
        )
        for prompt in prompts
        for sample in range(samples)
    ]
    longest = max((len(one.prompt) for one in requests), default=1)
    slots = min(slots, max(len(requests), 1))
    engine = Engine(model, slots=slots, capacity=longest + max_tokens, window=window)
    return gather(len(requests), stream(engine, requests, tokenizer=tokenizer, stop=stop))


def stream(
    engine: Engine,
    requests: Sequence[Request],
    *,
    tokenizer: Tokenizer | None = None,
    stop: Sequence[str] = (),
) -> Generator[Piece]:
    """Yield the answers to requests as they come; one that is no longer wanted may be closed.

    Args:
        engine: Used by nobody else meanwhile.
        requests: What to answer.
        tokenizer: Of the answers; by default the text of a token is its number.
        stop: Strings that end an answer.

    Raises:
        ValueError: If the engine refuses a request; then none is answered.
    """
    texts = [
        TextStream(tokenizer or Ids(), context=request.prompt, stop=stop) for request in requests
    ]
    places: dict[int, int] = {}
    try:
        for place, request in enumerate(requests):
            places[engine.submit(request)] = place
        while places:
            for number, token, reason, _ in engine.step():
                if number not in places:
                    continue
                text = texts[place := places[number]]
                said = "" if token is None else text.push(token.id)
                if text.stopped:
                    engine.cancel(number)
                    reason = "stop"
                elif reason is not None:
                    said += text.close()
                if reason is not None:
                    del places[number]
                yield Piece(place, said, token, reason)
    finally:
        for number in places:
            engine.cancel(number)


def gather(count: int, pieces: Iterable[Piece]) -> list[Generation]:
    """Put pieces together to `count` whole answers."""
    texts: list[list[str]] = [[] for _ in range(count)]
    tokens: list[list[Token]] = [[] for _ in range(count)]
    reasons: list[FinishReason] = ["length"] * count
    for place, text, token, reason in pieces:
        texts[place].append(text)
        tokens[place] += [] if token is None else [token]
        reasons[place] = reason or reasons[place]
    return [
        Generation("".join(text), tuple(each), reason)
        for text, each, reason in zip(texts, tokens, reasons, strict=True)
    ]


def _ids_of(prompt: str | Sequence[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    if isinstance(prompt, str):
        return encode_prompt(tokenizer, prompt)
    return tuple(prompt) or tokenizer.begin_tokens
