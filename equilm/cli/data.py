"""Commands about text: `equilm data prepare`, `tokenizer`, `check`. Read `runs.py` next."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from equilm.cli.terminal import argument, complain, console, say, waiting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from equilm.data.prepare import Progress


def prepare(
    train: Annotated[tuple[str, ...], Positional, argument("[SOURCE ...]")] = (),
    /,
    *,
    out: Annotated[Path, argument("FOLDER")],
    tokenizer: Annotated[str, argument("bytes|FOLDER|NAME")] = "bytes",
    end_token: Annotated[str, argument("TEXT")] = "",
    field: Annotated[str, argument("NAME")] = "text",
    valid: Annotated[tuple[str, ...], argument("SOURCE")] = (),
    test: Annotated[tuple[str, ...], argument("SOURCE")] = (),
    valid_share: float = 0.0,
    test_share: float = 0.0,
    piece_megabytes: float = 32.0,
    workers: int = 0,
) -> None:
    """Make tokens of text, once, for training to read.

    The same command again goes on from the last piece that is finished.

    Args:
        train: Files or patterns: .jsonl, .txt, .md, .parquet, also with .gz, .xz or .zst behind; or
            a dataset, hf:NAME[:CONFIG[:SPLIT]]. A text file is one document.
        out: Where the shards and manifest.json go.
        tokenizer: A folder with tokenizer.json, a name on the Hugging Face Hub, or bytes.
        end_token: What ends a document, as text; the tokenizer's own if left out.
        field: The column of the text.
        valid: Sources that are all for validation.
        test: Sources that are all for testing.
        valid_share: Share of the other documents for validation, by a hash of their text.
        test_share: Likewise for testing.
        piece_megabytes: Text a shard.
        workers: Processes that tokenise; 0 is one a core.
    """
    from equilm import data

    settings = data.PrepareConfig(
        train=train,
        valid=valid,
        test=test,
        out=out,
        tokenizer=tokenizer,
        end_token=end_token,
        field=field,
        valid_share=valid_share,
        test_share=test_share,
        piece_megabytes=piece_megabytes,
        workers=workers or os.cpu_count() or 1,
    )
    began = time.perf_counter()
    try:
        last = _show(data.prepare(settings), str(out))
    except KeyboardInterrupt:
        complain(f"interrupted; the same command goes on, what is finished is in {out}")
        raise SystemExit(130) from None
    _summarise(out, last, time.perf_counter() - began)
    for split, share in (("valid", valid_share), ("test", test_share)):
        if share and split not in data.open_folder(out).splits:
            say(f"{split}: no documents, with {split}_share at {share:g}")


def tokenizer(
    sources: Annotated[tuple[str, ...], Positional, argument("SOURCE [SOURCE ...]")] = (),
    /,
    *,
    out: Annotated[Path, argument("FOLDER")],
    size: int = 16_384,
    field: Annotated[str, argument("NAME")] = "text",
    megabytes: float = 1000.0,
) -> None:
    """Learn a tokenizer from text: byte-pair encoding over bytes.

    Args:
        sources: As for `prepare`; leave validation and test out.
        out: Where tokenizer.json goes.
        size: Tokens, those of the bytes and the end token included.
        field: The column of the text.
        megabytes: Of text to learn from.
    """
    from equilm import data

    settings = data.VocabularyConfig(
        sources=sources, out=out, size=size, field=field, megabytes=megabytes
    )
    with waiting(f"learning a tokenizer for {out}"):
        found = data.learn_vocabulary(settings)
    say(f"{out}: {found:,} tokens")


def check(folder: Annotated[Path, Positional, argument("FOLDER")], /) -> None:
    """Compare the shards of a prepared folder with their checksums.

    Args:
        folder: What `equilm data prepare` wrote.
    """
    from equilm import data

    opened = data.open_folder(folder)
    opened.check()
    shards = sum(len(split["shards"]) for split in opened.splits.values())
    say(f"{folder}: {shards} shards are as they were written")


def data_help() -> None:
    """Prepare text, learn a tokenizer, check shards: see `equilm data --help`."""


DATA_COMMANDS: dict[str, Callable[..., None]] = {
    "prepare": prepare,
    "tokenizer": tokenizer,
    "check": check,
}


def _show(progress: "Iterable[Progress]", name: str) -> "Progress":
    from rich.markup import escape
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = [TextColumn("[bold]{task.description}"), BarColumn(bar_width=24)]
    columns += [TextColumn("{task.fields[numbers]}"), TimeRemainingColumn(compact=True)]
    last = None
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        line = bars.add_task(escape(name), total=None, numbers="")
        for last in progress:
            numbers = f"{last.documents:,} documents, {last.tokens:,} tokens"
            total = last.bytes_total or None
            bars.update(line, total=total, completed=last.bytes_read, numbers=numbers)
            if not console.is_terminal:
                say(f"{name} piece {last.pieces}: {numbers}")
    assert last is not None
    return last


def _summarise(out: Path, last: "Progress", seconds: float) -> None:
    from rich.table import Table

    from equilm import data

    folder = data.open_folder(out)
    table = Table("split", "documents", "tokens", "bytes", "bytes a token", "shards")
    for column in table.columns[1:]:
        column.justify = "right"
    for split, told in folder.splits.items():
        numbers = [f"{told[name]:,}" for name in ("documents", "tokens", "bytes")]
        ratio = f"{told['bytes'] / told['tokens']:.2f}"
        table.add_row(split, *numbers, ratio, f"{len(told['shards']):,}")
    console.print(table)
    for source in last.without:
        say(f"{source}: no documents")
    speed = f"{last.tokens / seconds:,.0f} tokens/s"
    if last.kept:
        speed = f"{last.kept} of {last.pieces} pieces were there"
    say(f"{out}: {folder.tokenizer}, {folder.vocab_size:,} ids; {seconds:.1f} s, {speed}")
