"""Any checkpoint folder we understand becomes a folder of `transformers`, which must be installed.

The way back is `convert.py`. Read `modeling.py` next.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from equilm.hf.convert import load
from equilm.hf.face import MODEL_TYPE
from equilm.nn.folder import CONFIG, CheckpointError, read_json


def export(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write what `load` makes of `source` as `EquilmForCausalLM.save_pretrained` does.

    Raises:
        CheckpointError: As `load`; also if `target` is there and is no such folder.
        ValueError: Without `transformers`.
        OSError: If it could not be written.
    """
    if find_spec("transformers") is None:
        raise ValueError("transformers: expected it installed, as by pip install 'equilm[hf]'")
    from equilm.hf.modeling import from_language_model

    target = Path(target)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        there = (target / CONFIG).exists() and read_json(target / CONFIG).get("model_type")
        if there != MODEL_TYPE:
            raise CheckpointError(
                f"{target}: is there and is no folder of an equilm model for transformers; "
                "choose another name"
            )
    face = from_language_model(load(source))
    with _without_bars():
        face.save_pretrained(target)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Let the library draw no bars, which would lie over what the command says."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()
