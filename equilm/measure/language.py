"""A folder of a language model, measured where it lies: on text, or on tasks of the harness.

Read `documents.py` and `perplexity.py` next.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from equilm import record
from equilm.decode.text import Ids, Tokenizer, tokenizer_of
from equilm.hf.convert import load
from equilm.measure.documents import count_bytes, cut, name_of, read_documents
from equilm.measure.evaluate import EvaluationConfig
from equilm.measure.language_config import LanguageConfig
from equilm.measure.perplexity import evaluate_text
from equilm.nn.folder import complete_checkpoints
from equilm.nn.model import LanguageModel
from equilm.record import Record
from equilm.solve.iterate import Solve


def evaluate_folder(
    folder: Path, settings: EvaluationConfig, language: LanguageConfig
) -> list[Record]:
    """Measure a model, and append the Records to the `records.jsonl` of its run or folder.

    Args:
        folder: A run, a checkpoint in one, or any folder that `equilm.load` reads.
        settings: Lengths, windows, batch size, tolerance.
        language: Text, tasks.

    Returns:
        The Records.

    Raises:
        ValueError: For text, a tokenizer, a model or a task that is not what it should be.
        OSError: If something cannot be read or written.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    home = _home(folder.resolve())
    about: dict[str, Any] = {
        "model": home.name,
        "split": settings.split,
        "step": _step(folder.resolve()),
        **record.environment(device.type),
    }
    model, words = load(folder, device=device), tokenizer_of(language.tokenizer, folder)
    records: list[Record] = []
    if language.text:
        length = max(settings.lengths) + 1
        documents = list(read_documents(language.text, split=settings.split))
        if any(isinstance(one, str) for one in documents):
            _check_tokenizer(words, folder, language)
        tokens_BT = cut(
            documents, words, length=length, rows=settings.batch_size, seed=settings.seed
        )
        measured = evaluate_text(
            model,
            tokens_BT,
            settings,
            num_bytes=partial(count_bytes, words),
            sweeps=language.sweeps,
        )
        with settings.computing(device):
            task = f"{name_of(language.text)}, rows of {length - 1:,}"
            records += _about(measured, {"task": task, **about})
    if language.harness:
        _check_tokenizer(words, folder, language)
        with settings.computing(device):
            records += _about(_zero_shot(model, words, settings, language), about)
    record.append(home / "records.jsonl", records)
    return records


def _zero_shot(
    model: LanguageModel, words: Tokenizer, settings: EvaluationConfig, language: LanguageConfig
) -> Iterator[Record]:
    try:
        from equilm.measure.harness import Adapter, run_tasks
    except ModuleNotFoundError as error:
        raise ValueError(
            f"harness: expected lm-evaluation-harness ({error}); "
            "install it with: pip install 'equilm[eval]'"
        ) from None
    adapter = Adapter(
        model,
        words,
        window=settings.windows[0],
        solve=Solve(tolerance=settings.tolerance, max_steps=settings.max_steps),
        batch_size=settings.batch_size,
        max_length=max(settings.lengths),
    )
    tasks = [name.strip() for name in language.harness.split(",") if name.strip()]
    yield from run_tasks(adapter, tasks, include=language.include, limit=language.limit)


def _check_tokenizer(words: Tokenizer, folder: Path, language: LanguageConfig) -> None:
    if isinstance(words, Ids) and not language.tokenizer:
        raise ValueError(
            f'tokenizer: expected a folder or "bytes", for {folder} has none of its own'
        )


def _home(path: Path) -> Path:
    """The run that a folder is of, or the folder itself."""
    return next((one for one in (path, *path.parents) if (one / "recipe.json").exists()), path)


def _step(path: Path) -> int | None:
    """The step of a checkpoint, or of the newest one of a run."""
    newest = [path, *complete_checkpoints(path)][-1]
    number = newest.name.removeprefix("step-")
    return int(number) if number.isdecimal() and number != newest.name else None


def _about(records: Iterable[Record], about: Mapping[str, Any]) -> list[Record]:
    return [replace(one, **about) for one in records]
