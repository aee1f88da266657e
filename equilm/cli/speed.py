"""Commands about speed and cost: bench, plan."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction

from equilm.cli.terminal import argument, console, say


def bench(
    what: Positional[Literal["train", "ops", "decode", "scaling"]] = "train",
    /,
    *,
    preset: Annotated[str, argument("NAME")] = "",
    only: Annotated[str, argument("TEXT")] = "",
    json: Annotated[Path | None, argument("FILE")] = None,
) -> None:
    """Time training steps, operations, decoding sweeps or how a step grows, after testing them.

    Args:
        what: Which of them.
        preset: Time this published model alone; otherwise models that fit the machine.
        only: Time only rows whose name contains this, such as "130m 24+4".
        json: Append the Records to this file as well; `report` draws those of scaling.
    """
    from equilm import record
    from equilm.measure.bench import bench as run_bench
    from equilm.report.speed import measured, speed_tables

    records = []
    for found in run_bench(what, preset=preset, only=only):
        records += found
        if json is not None:
            record.append(json, found)
        for row in measured(found):
            say(f"{row.label}: {row.values['time']:.4g} ms")
    for table in speed_tables(records):
        console.print(table.terminal())


def plan(
    recipe: Annotated[Path, Positional, argument("RECIPE")],
    /,
    *,
    gpus: tuple[int, ...] = (8, 64, 256),
    rate: float = 300.0,
    overrides: Annotated[tuple[str, ...], UseAppendAction, argument("KEY=VALUE", name="set")] = (),
) -> None:
    """Count what a recipe costs: FLOPs of every phase, hours of so many GPUs. Nothing is trained.

    Args:
        recipe: A .toml or .json file.
        gpus: Numbers of GPUs.
        rate: TFLOP/s that one GPU sustains in training; `bench train` measures it.
        overrides: Change a setting of the recipe, as in train.
    """
    from equilm import config
    from equilm.train.cost import cost_table
    from equilm.train.recipe import Recipe

    settings = config.load(Recipe, recipe, overrides)
    console.print(cost_table(settings, gpus=gpus, rate=rate).terminal())
