"""Text as tokens on disk: prepared once into checksummed shards, read by step number ever after.

    for progress in prepare(PrepareConfig(train=("books/*.jsonl.xz",), out=Path("tokens"))): ...
    stream = open_folder(Path("tokens")).stream("train")

It makes shards and reads them; it knows no models and no torch. In the order of the work:
`sources.py` finds documents, `tokenizer.py` makes tokens of them, `pieces.py` writes them,
`prepare.py` drives these, `folder.py` reads what they wrote, `order.py` shuffles it and
`windows.py` cuts it; `vocabulary.py` learns a tokenizer. Read `prepare.py` first.
"""

from equilm.data.folder import Folder, Stream, joined, open_folder
from equilm.data.prepare import PrepareConfig, prepare
from equilm.data.vocabulary import VocabularyConfig, learn_vocabulary
from equilm.data.windows import Windows

__all__ = [
    "Folder",
    "PrepareConfig",
    "Stream",
    "VocabularyConfig",
    "Windows",
    "joined",
    "learn_vocabulary",
    "open_folder",
    "prepare",
]
