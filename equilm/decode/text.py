"""Text to tokens and back: bytes, bare ids, or a tokenizer's folder; and text as it is generated.

Read `generate.py` first.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
CONTEXT = 8  # tokens decoded again with a new one: what it looks like may depend on those before


class Tokenizer(Protocol):
    """What a decoder needs of a tokenizer."""

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Ids that end an answer."""

    @property
    def begin_tokens(self) -> tuple[int, ...]:
        """What a text is begun with where there is no prompt; none if nothing says."""

    @property
    def num_ids(self) -> int:
        """Ids that a model must know to be asked with it."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; raise ValueError if it has none."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; bytes that are no text become replacement characters."""

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the ids of a conversation up to where the answer begins.

        Args:
            messages: Tables of `role` and `content`.

        Raises:
            ValueError: If the tokenizer has no template for these.
        """


class Bytes:
    """UTF-8: the id of a byte is its value. Ids beyond 255 are no text; 256 ends documents."""

    stop_tokens = ()
    begin_tokens = (256,)
    num_ids = 256

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        return bytes(one for one in ids if one < 256).decode(errors="replace")

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """See `Tokenizer`."""
        raise _no_template("bytes")


class Ids:
    """No tokenizer: the text of a token is its number."""

    stop_tokens = ()
    begin_tokens = ()
    num_ids = 0

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        words = text.split()
        if not all(word.isdecimal() and word.isascii() for word in words):
            raise ValueError(f"prompt: expected token ids such as '3 1 4', got {text[:40]!r}")
        return [int(word) for word in words]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        return " ".join(map(str, ids))

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """See `Tokenizer`."""
        raise _no_template("token ids")


class Folder:
    """A tokenizer of Hugging Face's, read from a folder; nothing in it is executed.

    Raises:
        ValueError: If there is none, or `transformers` is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise ValueError(
                "tokenizer: expected the package transformers for a folder; "
                "install it with: pip install 'equilm[hf]'"
            ) from None
        try:
            self._own: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            told = str(error).splitlines()[0] if str(error) else repr(error)
            raise ValueError(f"{folder}: expected the folder of a tokenizer ({told})") from None
        end, begin = self._own.eos_token_id, self._own.bos_token_id
        self.stop_tokens: tuple[int, ...] = () if end is None else (end,)
        # Prepared text has no begin tokens: there the end of one document opens the next.
        self.begin_tokens = self.stop_tokens if begin is None else (begin,)
        self.num_ids: int = self._own.vocab_size

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return list(self._own.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        text = self._own.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """See `Tokenizer`."""
        from jinja2 import TemplateError

        if not self._own.chat_template:
            raise _no_template(self._own.name_or_path)
        try:
            text = self._own.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise ValueError(f"messages: refused by the tokenizer's template: {error}") from None
        return list(self._own.encode(text, add_special_tokens=False))


def tokenizer_of(name: str, checkpoint: Path) -> Tokenizer:
    """Return the tokenizer that is meant.

    Args:
        name: "bytes", "ids", a folder, or "": the checkpoint's own, if it has one, else "ids".
        checkpoint: A folder.

    Raises:
        ValueError: If there is no such folder.
    """
    if name in ("bytes", "ids"):
        return Bytes() if name == "bytes" else Ids()
    if name:
        return Folder(Path(name))
    own = any((checkpoint / file).exists() for file in ("tokenizer.json", "tokenizer_config.json"))
    return Folder(checkpoint) if own else Ids()


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> tuple[int, ...]:
    """Return the ids of a prompt; of an empty one, what the tokenizer begins a text with.

    Raises:
        ValueError: If it has none.
    """
    return tuple(tokenizer.encode(prompt)) or tokenizer.begin_tokens


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise ValueError if a tokenizer has more ids than a model of `vocab_size` knows."""
    if tokenizer.num_ids > vocab_size:
        raise ValueError(
            f"tokenizer: expected one of at most {vocab_size} ids, which the model knows, "
            f"got one of {tokenizer.num_ids}"
        )


def _no_template(what: str) -> ValueError:
    return ValueError(f"messages: expected a tokenizer with a chat template, got {what}")


class TextStream:
    """The text of an answer while its tokens come, up to a stop string.

    What may still change is held back: the bytes of a character that is not complete, and the
    beginning of what may become a stop string.

    Args:
        tokenizer: Of the answer.
        context: The tokens before the answer; spaces may depend on them.
        stop: Strings that end it; none of their text is told.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, context: Sequence[int] = (), stop: Sequence[str] = ()
    ) -> None:
        if not all(stop):
            raise ValueError("stop: expected strings of at least one character, got an empty one")
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.stopped = False  # whether a stop string was met
        self._ids = list(context[-CONTEXT:])
        # Characters of their text that are told, or are the context's.
        self._told = len(tokenizer.decode(self._ids).rstrip(REPLACEMENT))
        self._held = ""

    def push(self, token: int) -> str:
        """Return the text that the next token made certain, if any."""
        self._ids.append(token)
        text = self.tokenizer.decode(self._ids)
        certain = len(text.rstrip(REPLACEMENT))
        # A character has at most four bytes: more replacement characters are there to stay.
        certain = max(certain, len(text) - 4)
        new = text[self._told : certain]
        self._told = max(self._told, certain)
        if len(self._ids) > 4 * CONTEXT:
            pending = len(text) - self._told
            self._ids = self._ids[-CONTEXT:]
            self._told = len(self.tokenizer.decode(self._ids)) - pending
        return self._until_stop(new)

    def close(self) -> str:
        """Return the text held back, now that nothing follows."""
        if self.stopped:
            return ""
        rest = self._until_stop(self.tokenizer.decode(self._ids)[self._told :])
        held, self._held = self._held, ""
        return rest + held

    def _until_stop(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [at for at in (text.find(one) for one in self.stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        hold = max((_overlap(text, one) for one in self.stop), default=0)
        cut = len(text) - hold
        self._held = text[cut:]
        return text[:cut]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` with which `stop` may begin."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
