"""From a body to what the engine is asked, and every limit that is not one of size or time.

Read `reader.py` next.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from equilm.decode.request import Request, Sampling
from equilm.decode.server.bodies import Body, ChatBody, CompletionBody
from equilm.decode.server.errors import ApiError, bad
from equilm.decode.server.settings import ServerConfig
from equilm.decode.text import Tokenizer, encode_prompt

DEFAULT_TOKENS = 16  # of OpenAI's completions


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one HTTP request asks for: prompt i's choice j stands at i · n + j.

    Args:
        requests: For the engine.
        prompt_tokens: Of all prompts, each counted once.
        stop: Strings that end an answer.
        generate: Whether anything is generated, or only the prompt scored.
        usage: Whether a stream ends with the counts.
    """

    requests: tuple[Request, ...]
    prompt_tokens: int
    stop: tuple[str, ...] = ()
    generate: bool = True
    usage: bool = False


@dataclass(frozen=True, kw_only=True)
class Translator:
    """Makes jobs of bodies.

    Args:
        config: Limits and defaults.
        tokenizer: Of the model.
        capacity: Tokens of a prompt and its answer, if they are limited.
        limit: Answers that may be open at once.
    """

    config: ServerConfig
    tokenizer: Tokenizer
    capacity: int | None
    limit: int

    def completion(self, body: CompletionBody) -> Job:
        """Translate `POST /v1/completions`."""
        self._check(body)
        prompts = [self._encode(prompt, "prompt") for prompt in body.prompt]
        asked = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        if not asked and not body.echo:
            raise bad("max_tokens", "expected an integer >= 1, or echo")
        return self._job(
            body, prompts, asked, body.logprobs, echo=bool(body.echo), generate=asked > 0
        )

    def chat(self, body: ChatBody) -> Job:
        """Translate `POST /v1/chat/completions`."""
        self._check(body)
        if body.top_logprobs is not None and not body.logprobs:
            raise bad("top_logprobs", "expected logprobs to be true with it")
        prompt = self._check_prompt(self._apply_template(body), "messages")
        asked = body.max_completion_tokens or body.max_tokens or self._room(prompt)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        return self._job(body, [prompt], asked, logprobs)

    def _room(self, prompt: Sequence[int]) -> int:
        limit = self.config.limits.max_answer
        return limit if self.capacity is None else max(1, min(limit, self.capacity - len(prompt)))

    def _check(self, body: Body) -> None:
        body.check_extra()
        if body.model not in (None, self.config.name):
            raise no_model(body.model)
        if body.stream_options is not None and not body.stream:
            raise bad("stream_options", "expected stream to be true with it")

    def _apply_template(self, body: ChatBody) -> Sequence[int]:
        try:
            return self.tokenizer.chat([message.plain() for message in body.messages])
        except ValueError as error:
            raise ApiError(400, str(error), param="messages") from None

    def _encode(self, prompt: str | list[int], name: str) -> tuple[int, ...]:
        if not isinstance(prompt, str):
            return self._check_prompt(prompt, name)
        # No tokenizer makes more than a few bytes of text into no token at all.
        if len(prompt) > 64 * self.config.limits.max_prompt:
            raise self._too_long(name, "far more")
        try:
            return self._check_prompt(encode_prompt(self.tokenizer, prompt), name)
        except ValueError as error:
            raise bad(name, str(error).removeprefix(f"{name}: ")) from None

    def _check_prompt(self, ids: Sequence[int], name: str) -> tuple[int, ...]:
        if not ids:
            raise bad(name, "expected at least one token, got none")
        if len(ids) > self.config.limits.max_prompt:
            raise self._too_long(name, f"{len(ids):,}")
        return tuple(ids)

    def _too_long(self, name: str, got: str) -> ApiError:
        told = f"expected at most {self.config.limits.max_prompt:,} tokens, got {got}"
        return bad(name, told, code="context_length_exceeded")

    def _job(
        self,
        body: Body,
        prompts: Sequence[tuple[int, ...]],
        max_tokens: int,
        logprobs: int | None,
        *,
        echo: bool = False,
        generate: bool = True,
    ) -> Job:
        if max_tokens > self.config.limits.max_answer:
            told = f"expected at most {self.config.limits.max_answer:,}, got {max_tokens:,}"
            raise bad("max_tokens", told)
        if len(prompts) * (body.n or 1) > self.limit:
            raise bad("n", f"expected at most {self.limit} answers at once, prompts times n")
        seed = secrets.randbits(62) if body.seed is None else body.seed
        tolerance, max_steps = self._solver(body)
        requests = [
            Request(
                prompt=prompt,
                max_tokens=max(1, max_tokens),
                sampling=_sampling(body, seed=seed + choice),
                stop_tokens=self.tokenizer.stop_tokens,
                tolerance=tolerance,
                max_steps=max_steps,
                logprobs=logprobs,
                residuals=bool(body.residuals),
                echo=echo,
            )
            for prompt in prompts
            for choice in range(body.n or 1)
        ]
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return Job(
            requests=tuple(requests),
            prompt_tokens=sum(map(len, prompts)),
            stop=body.stop,
            generate=generate,
            usage=usage,
        )

    def _solver(self, body: Body) -> tuple[float, int]:
        limits, asked = self.config.limits, body.solver
        tolerance = asked.tolerance if asked else None
        steps = asked.max_steps if asked else None
        if steps is not None and steps > limits.most_steps:
            raise bad("solver", f"max_steps: expected at most {limits.most_steps}, got {steps}")
        return (
            limits.tolerance if tolerance is None else tolerance,
            limits.max_steps if steps is None else steps,
        )


def no_model(name: str | None) -> ApiError:
    """Return the error of a name that is not the model's: status 404."""
    told = f"model: expected one that GET /v1/models lists, got {str(name)[:100]!r}"
    return ApiError(404, told, param="model", code="model_not_found")


def _sampling(body: Body, *, seed: int) -> Sampling:
    """What is not said, or null, is as OpenAI has it: temperature 1 and nothing cut off."""
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        seed=seed,
    )
