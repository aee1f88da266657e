"""From pieces of answers to JSON, whole or as chunks of a stream: the same shape, once or often.

Beside OpenAI's fields a choice carries `token_ids`, `steps`, `status` and, if asked for,
`residuals`, one entry a generated token. Read `app.py` next.
"""

import json
import math
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from equilm.decode.request import FinishReason, Token

Kind = Literal["completion", "chat"]
Json = dict[str, Any]
# What a token is called in log probabilities, and whether it is the first of a text: its text, or
# token_id:N where it is none alone.
Name = Callable[[int, bool], str]


class Piece(NamedTuple):
    """What became known of one choice: some of its text, tokens and end.

    Tokens may come before their text, while a character is not complete or a stop string possible.
    """

    text: str = ""
    tokens: tuple[Token, ...] = ()
    prompt: tuple[Token, ...] = ()  # echoed
    finish_reason: FinishReason | None = None

    def then(self, other: "Piece") -> "Piece":
        """Return this piece and the next as one."""
        return Piece(
            self.text + other.text,
            self.tokens + other.tokens,
            self.prompt + other.prompt,
            other.finish_reason or self.finish_reason,
        )


class Usage(NamedTuple):
    """Tokens taken in and generated."""

    prompt: int = 0
    generated: int = 0

    def json(self) -> Json:
        """Return it as OpenAI writes it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
        }


class Writer:
    """Writes the answers to one HTTP request.

    Args:
        kind: Of which endpoint.
        model: Its name.
        name: What a token is called.
        logprobs: Whether they were asked for.
        residuals: Whether they were asked for.
    """

    def __init__(
        self, kind: Kind, *, model: str, name: Name, logprobs: bool, residuals: bool
    ) -> None:
        self.kind, self.name = kind, name
        self.logprobs, self.residuals = logprobs, residuals
        prefix, self._object = {
            "completion": ("cmpl", "text_completion"),
            "chat": ("chatcmpl", "chat.completion"),
        }[kind]
        self._head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self._offsets: dict[int, int] = {}  # characters told, by choice
        self._greeted: set[int] = set()

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> Json:
        """Return the answer that is not streamed, one piece a choice."""
        choices = []
        for index, piece in enumerate(pieces):
            choice = self._choice(index, piece)
            if self.kind == "chat":
                choice["message"] = {"role": "assistant", "content": piece.text, "refusal": None}
            choices.append(choice)
        return {**self._head, "object": self._object, "choices": choices, "usage": usage.json()}

    def chunk(self, index: int, piece: Piece) -> str:
        """Return one event of a stream."""
        choice = self._choice(index, piece)
        if self.kind == "chat":
            choice["delta"] = {"content": piece.text}
            if index not in self._greeted:
                self._greeted.add(index)
                choice["delta"]["role"] = "assistant"
        return self._event([choice])

    def usage(self, usage: Usage) -> str:
        """Return the event of a stream that tells the counts."""
        return self._event([], usage=usage.json())

    def _event(self, choices: list[Json], **more: Json) -> str:
        kind = self._object + (".chunk" if self.kind == "chat" else "")
        return event({**self._head, "object": kind, "choices": choices, **more})

    def _choice(self, index: int, piece: Piece) -> Json:
        choice: Json = {"index": index, "finish_reason": piece.finish_reason, "logprobs": None}
        if self.kind == "completion":
            choice["text"] = piece.text
        if self.logprobs:
            told = (*piece.prompt, *piece.tokens)
            if self.kind == "chat":
                choice["logprobs"] = self._chat_logprobs(told)
            else:
                begins = bool(piece.prompt) and index not in self._offsets
                choice["logprobs"] = self._text_logprobs(index, told, begins=begins)
        choice["token_ids"] = [token.id for token in piece.tokens]
        choice["steps"] = [token.steps for token in piece.tokens]
        choice["status"] = [token.status for token in piece.tokens]
        if self.residuals:
            choice["residuals"] = [
                [_finite(residual) for residual in token.residuals] for token in piece.tokens
            ]
        return choice

    def _text_logprobs(self, index: int, tokens: Sequence[Token], *, begins: bool) -> Json:
        names = [self.name(token.id, begins and at == 0) for at, token in enumerate(tokens)]
        offsets = []
        for name in names:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(name)
        return {
            "tokens": names,
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": offsets,
        }

    def _top(self, token: Token) -> Json | None:
        """The likeliest, and the one that was taken; `null` where nothing was predicted."""
        if token.logprob is None:
            return None
        top: Json = {}
        listed = [*token.top_logprobs, (token.id, token.logprob)]
        for token_id, logprob in sorted(listed, key=lambda entry: -entry[1]):
            top.setdefault(self.name(token_id, False), _finite(logprob))
        return top

    def _chat_logprobs(self, tokens: Sequence[Token]) -> Json:
        def entry(token_id: int, logprob: float | None) -> Json:
            name = self.name(token_id, False)
            return {"token": name, "logprob": _finite(logprob), "bytes": _bytes(name)}

        return {
            "content": [
                entry(token.id, token.logprob)
                | {"top_logprobs": [entry(*top) for top in token.top_logprobs]}
                for token in tokens
            ],
            "refusal": None,
        }


def event(data: Json) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


DONE = "data: [DONE]\n\n"


def _finite(value: float | None) -> float | None:
    """JSON has no infinity and no NaN; seven digits are what float32 has."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.7g}")


def _bytes(name: str) -> list[int] | None:
    return None if name.startswith("token_id:") else list(name.encode())
