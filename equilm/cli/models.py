"""Commands about one model: check, convert. Read `speed.py` next."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from equilm.cli.terminal import argument, console, say, waiting

Format = Literal["equilm", "transformers", "mamba2", "llama", "reference"]


def check(
    checkpoint: Annotated[Path, Positional, argument("FOLDER")],
    /,
    *,
    length: int = 32,
    batch_size: int = 8,
    seed: int = 0,
    fp8: bool = False,
) -> None:
    """Verify on a model itself that its modes agree, and say how it converges; exit 1 if it fails.

    Args:
        checkpoint: A run, a checkpoint, or any folder that `convert` reads.
        length: Tokens of the sequences tried.
        batch_size: Sequences.
        seed: Of the tokens.
        fp8: Instead compare sweeps in 8 bits with sweeps in full, on the task of a run.
    """
    from equilm.hf.convert import load
    from equilm.measure.check import as_table, check_model, check_sizes

    if fp8:
        from equilm.train.runs import compare_run

        table = compare_run(checkpoint, length=length, batch_size=batch_size, seed=seed)
        console.print(table.terminal())
        return
    check_sizes(length=length, batch_size=batch_size)
    model = load(checkpoint)
    with waiting(f"checking {checkpoint}: a minute or more where it converges slowly"):
        findings = check_model(model, length=length, batch_size=batch_size, seed=seed)
    console.print(as_table(findings).terminal())
    if any(finding.ok is False for finding in findings):
        sys.exit(1)


def convert(
    source: Annotated[Path, Positional, argument("SOURCE")],
    target: Annotated[Path, Positional, argument("TARGET")],
    /,
    *,
    to: Annotated[Format, argument("FORMAT")] = "equilm",
    implicit: bool = False,
) -> None:
    """Turn a checkpoint of any kind into a model folder, or into one of another program.

    Args:
        source: A run or model folder, a folder of the public reference, or a Mamba2, Llama or
            equilm folder of Hugging Face's library, with config.json and model.safetensors (or
            pytorch_model.bin, of which weights only).
        target: The folder to write.
        to: Whose folder to write: equilm, ours, if left out; transformers, ours for that library,
            which must be installed; mamba2 or llama, its own; reference, the public reference's.
        implicit: Make an explicit model implicit; at first it answers as it did.
    """
    from functools import partial

    from equilm.hf.convert import convert as to_equilm
    from equilm.hf.convert import load
    from equilm.hf.export import export as to_transformers
    from equilm.hf.foreign import write_foreign
    from equilm.hf.retrofit import convert_implicit
    from equilm.nn.model import parameter_count

    if implicit and to != "equilm":
        raise ValueError(f"implicit: expected --to equilm with it, got {to}")
    write = {
        "equilm": convert_implicit if implicit else to_equilm,
        "transformers": to_transformers,
    }.get(to, partial(write_foreign, to=to))
    write(source, target)
    say(f"{target}: {parameter_count(load(target)):,} parameters")
