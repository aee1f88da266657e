"""A document to token ids: plain bytes, or any tokenizer of `tokenizers` or `transformers`.

A tokenizer here has an end token, which no document can contain, and a digest by which shards know
what made them. Text from tokens is not here but in `equilm/decode/text.py`. Read `pieces.py` next.
"""

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BYTES_END = 256  # behind the values of a byte
# What published tokenizers call the end of a text, where a file alone does not tell.
USUAL_ENDS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[EOS]")


class Tokenizer(NamedTuple):
    """How a document becomes tokens.

    `encode` gives the ids of a text without any token added; `end_token` stands between documents.
    """

    name: str
    digest: str
    vocab_size: int
    end_token: int
    encode: Callable[[str], NDArray[np.uint32]]

    @property
    def dtype(self) -> str:
        """The smallest type that holds every id, little endian."""
        return "<u2" if self.vocab_size <= 2**16 else "<u4"


@lru_cache(maxsize=1)
def load_tokenizer(name: str, end: str = "") -> Tokenizer:
    """Return the tokenizer of that name.

    Args:
        name: `bytes`; a folder or a tokenizer.json; or a name on the Hugging Face Hub.
        end: The end token as the tokenizer writes it; "" takes its own, or a usual one.

    Raises:
        ValueError: If there is none, a package is missing, or no end token is known.
    """
    if name == "bytes":
        if end:
            raise ValueError(
                f"end_token: expected none with bytes, which have their own, got {end}"
            )
        return Tokenizer("bytes", "bytes", BYTES_END + 1, BYTES_END, _bytes)
    path = Path(name) / "tokenizer.json" if Path(name).is_dir() else Path(name)
    own, known = _of_file(path) if path.is_file() else _of_transformers(name)
    # The text of a document may spell a special token, and must not become one.
    own.encode_special_tokens = True
    vocabulary: dict[str, int] = own.get_vocab(with_added_tokens=True)
    wanted = [end] if end else [*known, *USUAL_ENDS]
    found = [vocabulary[word] for word in wanted if word in vocabulary]
    if not found:
        raise ValueError(
            f"end_token: expected a token of {name}, such as {USUAL_ENDS[0]}, "
            f"got {end or 'none, and it has no usual one'}"
        )

    def encode(text: str) -> NDArray[np.uint32]:
        (encoding,) = own.encode_batch_fast([text], add_special_tokens=False)
        return np.asarray(encoding.ids, dtype=np.uint32)

    digest = hashlib.sha256(own.to_str().encode()).hexdigest()
    size = max(vocabulary.values()) + 1
    return Tokenizer(Path(name).resolve().name, digest, size, found[0], encode)


def _bytes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32)


def _of_file(path: Path) -> tuple[Any, list[str]]:
    """A tokenizers.Tokenizer, and the end token that the file beside it names."""
    try:
        from tokenizers import Tokenizer as Fast
    except ImportError:
        raise missing("tokenizers") from None
    try:
        own = Fast.from_file(str(path))
    except Exception as error:
        # The package raises nothing narrower.
        raise ValueError(f"{path}: expected a tokenizer ({error})") from None
    return own, _named_end(path.parent / "tokenizer_config.json")


def _named_end(path: Path) -> list[str]:
    if not path.is_file():
        return []
    named = json.loads(path.read_text(encoding="utf-8")).get("eos_token")
    word = named.get("content") if isinstance(named, dict) else named
    return [word] if isinstance(word, str) else []


def _of_transformers(name: str) -> tuple[Any, list[str]]:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise missing("transformers") from None
    try:
        whole = AutoTokenizer.from_pretrained(name)
        own = whole.backend_tokenizer
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        told = (str(error) or repr(error)).strip().splitlines()[0]
        raise ValueError(
            f"tokenizer: expected bytes, a folder or a name on the Hub, got {name} ({told})"
        ) from None
    return own, [whole.eos_token] if whole.eos_token else []


def missing(package: str) -> ValueError:
    """Return the error of a package that is not installed."""
    return ValueError(
        f"tokenizer: expected the package {package}; install it with: pip install 'equilm[data]'"
    )
