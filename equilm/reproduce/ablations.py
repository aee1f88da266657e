"""What each part of Mamba gives: S6 with one thing changed at a time. Read `mixers.py` first.

On selective copying and induction heads; on text too, if a prepared folder is given, which is where
the published ablations were made (arXiv 2312.00752, tables 6 to 10, there 350M parameters).
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import Literal

from equilm.measure.at_lengths import AtLengths
from equilm.nn.s6 import S6Config
from equilm.report.mixer_table import ablation_table
from equilm.reproduce import mixers
from equilm.reproduce.columns import Column, columns
from equilm.reproduce.figures import Part, Settings
from equilm.reproduce.plan import Figure, Run
from equilm.tasks import TextConfig
from equilm.train.schedule import FixedLengths

SELECTABLE: tuple[Literal["step", "b", "c"], ...] = ("step", "b", "c")
PARTS = ("copying", "induction")
TEXT_LENGTH = 512


def mamba_ablations(settings: Settings) -> Figure:
    """Selective step, B and C in all combinations; start of A; rank of the step; state size."""
    chosen = [column for column in columns(quick=settings.quick) if column.part in PARTS]
    if settings.data is not None:
        text = TextConfig(sources=(str(settings.data.resolve()),), boundaries="carry")
        lengths = FixedLengths(lengths=(TEXT_LENGTH,))
        column = replace(
            chosen[0], part="text", task=text, curriculum=lengths, tests=lengths.lengths
        )
        chosen.append(column if settings.quick else replace(column, steps=8000, max_tokens=2**16))
    return Figure(
        name="mamba-ablations",
        runs=tuple(
            _run(name, mixer, column, quick=settings.quick)
            for name, mixer in configurations(quick=settings.quick).items()
            for column in chosen
        ),
        seeds=mixers.SEEDS[:1] if settings.quick else mixers.SEEDS,
        draw=(),
        tables=(ablation_table,),
        tolerates=mixers.TOLERATED,
    )


def configurations(*, quick: bool) -> dict[str, S6Config]:
    """Return the published mixer, and those that differ from it in one thing, by name."""
    return dict(_configurations(quick=quick))


def _configurations(*, quick: bool) -> Iterator[tuple[str, S6Config]]:
    yield "published", S6Config()
    for count in range(len(SELECTABLE)):
        for chosen in combinations(SELECTABLE, count):
            name = "-".join(chosen) or "nothing"
            yield f"selective-{name}", S6Config(selective=chosen)
    inits: tuple[Literal["half", "random", "lin"], ...] = ("half", "random", "lin")
    for init in inits:
        yield f"init-{init}", S6Config(init=init)
    # The published rank is a 16th of the width, 2 or 8.
    for rank in (1, 4, 16) if quick else (1, 2, 4, 16, 32, 64):
        yield f"rank-{rank}", S6Config(step_rank=rank)
    for size in (1, 4) if quick else (1, 2, 4, 8, 32, 64):
        yield f"states-{size}", S6Config(state_size=size)


def _run(name: str, mixer: S6Config, column: Column, *, quick: bool) -> Run:
    tested = AtLengths(lengths=column.tests)
    return Run(
        name=name,
        group=f"mamba-{column.part}",
        recipe=mixers.recipe(mixer, column, quick=quick, implicit=False),
        measures=(Part(part=column.part, measure=tested),),
    )
