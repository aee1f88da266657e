"""The bodies of requests, as OpenAI's clients send them, with this package's extras.

Types and ranges only; `translate.py` makes `Request`s of them. What OpenAI knows and we do not is
accepted where it changes nothing, and refused where it would.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from equilm.config import suggest
from equilm.decode.server.errors import bad

MAX_TOP = 20  # alternatives a token, as of OpenAI's chat
MAX_CHOICES = 128  # as of OpenAI

_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_PROMPT = "expected a string, a list of strings, token ids or a list of lists of token ids"
_STOP = "expected a string or a list of at most 16 strings, none of them empty"

# Fields of OpenAI's that change no answer.
_IGNORED = {
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}
# Fields of OpenAI's that we have not, with the values that ask for nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}


def _is_ids(value: object) -> bool:
    # Booleans are integers to Python, not to us.
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _are_texts(values: list[object]) -> bool:
    # Half a surrogate pair is a string to JSON, and no text.
    texts = [item for item in values if isinstance(item, str)]
    return len(texts) == len(values) and "".join(texts).encode() is not None


def _check_prompt(value: Any) -> list[str] | list[list[int]]:
    if isinstance(value, str) or _is_ids(value):
        value = [value]
    if not isinstance(value, list) or not value:
        raise ValueError(_PROMPT)
    if not (_are_texts(value) or all(map(_is_ids, value))):
        raise ValueError(_PROMPT)
    return value


def _check_stop(value: Any) -> tuple[str, ...]:
    listed = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or len(listed) > 16 or not all(listed):
        raise ValueError(_STOP)
    if not _are_texts(listed):
        raise ValueError(_STOP)
    return tuple(listed)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, value: Any) -> Any:
        if cls.model_config["extra"] == "forbid" and isinstance(value, dict):
            for name in value.keys() - cls.model_fields.keys():
                hint = suggest(str(name)[:100], cls.model_fields)
                raise ValueError(f"unknown field {str(name)[:100]!r}; {hint}")
        return value


class Solver(_Strict):
    """The dial between quality and speed."""

    tolerance: float | None = Field(None, ge=0, le=1)
    max_steps: int | None = Field(None, ge=1)


class StreamOptions(_Strict):
    """What a stream tells besides."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Body(_Strict):
    """What both endpoints take; `null` asks for the default, as OpenAI has it."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Annotated[Any, AfterValidator(_check_stop)] = Field((), validate_default=False)
    seed: int | None = Field(None, ge=_LOWEST, le=_HIGHEST)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    solver: Solver | None = None
    residuals: bool | None = None
    max_tokens: int | None = Field(None, ge=0)

    def check_extra(self) -> None:
        """Refuse what would be ignored in silence.

        Raises:
            ApiError: For a field that nobody knows, or one of OpenAI's with a value that matters.
        """
        known = type(self).model_fields.keys() | _NEUTRAL.keys() | _IGNORED
        for name, value in (self.model_extra or {}).items():
            if name not in known:
                hint = suggest(name[:100], known)
                raise bad(name[:100], f"unknown field; {hint}", code="unknown_parameter")
            if name in _NEUTRAL and value not in (None, *_NEUTRAL[name]):
                raise bad(name, "not supported here; leave it out", code="unsupported_parameter")


class CompletionBody(Body):
    """`POST /v1/completions`."""

    prompt: Annotated[Any, AfterValidator(_check_prompt)]
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP)


class Part(_Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One turn of a conversation; the template of the tokenizer knows the roles."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    content: str | list[Part]

    def plain(self) -> dict[str, str]:
        """Return the message as a template reads it.

        Raises:
            ApiError: For more than text, such as calls of tools.
        """
        for name, value in (self.model_extra or {}).items():
            if name != "name" and value not in (None, [], ""):
                raise bad("messages", f"expected role and content alone, got {name!r} too")
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": self.role, "content": content}


class ChatBody(Body):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP)
