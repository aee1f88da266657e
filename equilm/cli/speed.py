"""Commands about speed: bench."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from equilm.cli.terminal import argument, console


def bench(
    what: Positional[Literal["train", "ops", "decode"]] = "train",
    /,
    *,
    preset: Annotated[str, argument("NAME")] = "",
    json: Annotated[Path | None, argument("FILE")] = None,
) -> None:
    """Time a training step, the operations or a decoding sweep, after testing what is timed.

    Args:
        what: Which of them.
        preset: Time this published model alone; otherwise models that fit the machine.
        json: Append the Records to this file as well.
    """
    from equilm import record
    from equilm.measure.bench import bench as run_bench

    table, records = run_bench(what, only=preset)
    console.print(table.terminal())
    if json is not None:
        record.append(json, records)
