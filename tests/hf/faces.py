"""Small models of every kind behind their face for `transformers`; and how each is asked alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equilm.nn.model import LanguageModel
from tests.nn.build import VOCAB, float32_model, language_model

KINDS = ("mamba2", "attention", "implicit-mamba2", "implicit-attention")
IMPLICIT = KINDS[2:]


def ours(kind: str) -> LanguageModel:
    """Return a small random model of ours in float32; an implicit one is solved to 1e-6."""
    if kind in IMPLICIT:
        model = float32_model(kind.removeprefix("implicit-"))
    else:
        model = language_model(kind, tie_embeddings=False).float()
    with torch.no_grad():
        # Logits far enough apart that rounding does not choose the next token.
        (model.embedding if model.head is None else model.head).mul_(20.0)
    return model.eval()


def face(kind: str, **settings: Any) -> Any:
    """Return the same model for `transformers`."""
    from equilm.hf.modeling import from_language_model

    model = from_language_model(ours(kind))
    for name, value in settings.items():
        setattr(model.config, name, value)
    return model


def config(kind: str, **settings: Any) -> Any:
    """Return the configuration of a small model."""
    from equilm.hf.configuration import EquilmConfig
    from equilm.hf.face import to_keys

    return EquilmConfig(**to_keys(replace(ours(kind).config, **settings)))


def ragged(*lengths: int, seed: int = 0) -> list[Tensor]:
    """Return rows (1, T) of random tokens, none of them 0, which pads."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (1, length), generator=generator) for length in lengths]


def padded(rows: list[Tensor], *, left: bool) -> tuple[Tensor, Tensor]:
    """Return the rows as one batch, and its attention mask."""
    width = max(row.shape[1] for row in rows)
    tokens_BT = torch.zeros(len(rows), width, dtype=torch.int64)
    mask_BT = torch.zeros_like(tokens_BT)
    for index, row in enumerate(rows):
        place = slice(width - row.shape[1], None) if left else slice(0, row.shape[1])
        tokens_BT[index, place], mask_BT[index, place] = row[0], 1
    return tokens_BT, mask_BT


def read(folder: Path, **settings: Any) -> Any:
    """Load a folder by its own word for what it is, strictly."""
    import transformers

    import equilm.hf.modeling  # noqa: F401

    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, **settings
    )
    assert not any(info.values()), info
    return model


def assert_same_weights(got: torch.nn.Module, expected: torch.nn.Module) -> None:
    ours, theirs = got.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        assert leaf.dtype == theirs[name].dtype and torch.equal(leaf, theirs[name]), name
