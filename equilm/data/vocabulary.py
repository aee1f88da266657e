"""A tokenizer of one's own: byte-pair encoding over bytes, learnt from the documents.

Any text can be written in it, for every byte is a token. Read `tokenizer.py` for how it is used.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from equilm.data.pieces import write_json
from equilm.data.sources import Reading, find_sources
from equilm.data.tokenizer import USUAL_ENDS, missing

NUM_BYTES = 256


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """What to learn from, and how much.

    Args:
        sources: As for `prepare`; only training text, or validation is no longer unseen.
        out: The folder of the tokenizer.
        size: Tokens, those of the bytes and the end token included.
        field: The column of the text in jsonl, Parquet and datasets.
        megabytes: Of text to learn from, in 10⁶ bytes, from the first document on.
    """

    sources: tuple[str, ...]
    out: Path
    size: int = 16_384
    field: str = "text"
    megabytes: float = 1000.0

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources: expected one source or more, got none")
        if self.size <= NUM_BYTES:
            raise ValueError(f"size: expected more than {NUM_BYTES} tokens, got {self.size}")
        if not self.megabytes > 0:
            raise ValueError(f"megabytes: expected a number > 0, got {self.megabytes}")


def learn_vocabulary(config: VocabularyConfig) -> int:
    """Write tokenizer.json and tokenizer_config.json, which `transformers` reads too.

    Returns:
        How many tokens there are: fewer than `size` if the text has no more pairs to merge.

    Raises:
        ValueError: For a source that cannot be read, or only empty ones; names it.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError:
        raise missing("tokenizers") from None
    end = USUAL_ENDS[0]
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.size,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = _Texts(config)
    own.train_from_iterator(iter(texts), trainer)
    if not texts.num_bytes:
        raise ValueError("sources: expected documents, got only empty sources")
    config.out.mkdir(parents=True, exist_ok=True)
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
    write_json(config.out / "tokenizer_config.json", told)
    own.save(str(config.out / "tokenizer.json"))
    return int(own.get_vocab_size())


class _Texts:
    """The first documents, up to so many bytes."""

    def __init__(self, config: VocabularyConfig) -> None:
        self.reading = Reading(find_sources(config.sources), field=config.field)
        self.limit, self.num_bytes = config.megabytes * 1e6, 0

    def __iter__(self) -> Iterator[str]:
        for document in self.reading:
            if self.num_bytes >= self.limit:
                return
            self.num_bytes += len(document.text.encode())
            yield document.text
