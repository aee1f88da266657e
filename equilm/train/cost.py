"""What a recipe will cost, by counting: FLOPs of every phase, hours of so many GPUs.

The counting is that of `equilm bench`: a backward pass costs two forward ones, and every sweep that
a phase allows is made, so that a solve which converges earlier costs less. Read `recipe.py` next.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from equilm.measure.bench.floors import step_work
from equilm.measure.bench.rows import Row
from equilm.nn.model import LanguageModel
from equilm.nn.presets import preset
from equilm.report.tables import Table
from equilm.solve.gradient import Phantom
from equilm.train.recipe import Recipe
from equilm.train.schedule import FixedLengths, at_phase


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Steps of one length and depth."""

    depth: tuple[int, int] | None  # (sweeps, phantom steps) of an implicit model
    length: int
    tokens: float
    flops: float  # at most, of all its tokens

    @property
    def name(self) -> str:
        """In the notation (s+k)."""
        return "explicit" if self.depth is None else f"{self.depth[0]}+{self.depth[1]}"


def stretches(recipe: Recipe) -> Iterator[Stretch]:
    """Yield what a run consists of, in its order.

    Raises:
        ValueError: If lengths or FLOPs depend on how training goes, or a vocabulary is left to the
            task.
    """
    lengths = recipe.curriculum
    if not isinstance(lengths, FixedLengths):
        raise ValueError(
            "curriculum: expected fixed lengths, got some that follow the accuracy; for one length "
            f"say --set 'curriculum={{kind=\"fixed\", lengths=[{lengths.lengths[-1]}]}}'"
        )
    config = preset(recipe.model) if isinstance(recipe.model, str) else recipe.model
    if config.vocab_size is None:
        raise ValueError(
            "model.vocab_size: expected the number of tokens, got none; "
            "say --set model.vocab_size=N"
        )
    with torch.device("meta"):
        model = LanguageModel(config)
    begins = sorted({*lengths.shares, *(phase.share for phase in recipe.phases), 0.0})
    for share, end in zip(begins, [*begins[1:], 1.0], strict=True):
        length = [n for n, start in zip(lengths.lengths, lengths.shares, strict=True)
                  if start <= share][-1]  # fmt: skip
        row = Row(model="", batch=1, length=length)
        if config.equilibrium is not None:
            now = at_phase(config.equilibrium, recipe.phases, share=share, length=length)
            if not isinstance(now.gradient, Phantom):
                raise ValueError("gradient: expected phantom steps, whose number is known")
            depth = now.solve.max_steps, now.gradient.steps
            row = replace(row, depth=depth, precision=now.solve.precision)
        tokens = (end - share) * recipe.steps * recipe.rows(length) * length
        flops = step_work(model, row, itemsize=2).all_flops * tokens / length
        yield Stretch(depth=row.depth, length=length, tokens=tokens, flops=flops)


def cost_table(recipe: Recipe, *, gpus: Sequence[int], rate: float) -> Table:
    """Return the cost of a run as a table.

    Args:
        recipe: With lengths that are known before.
        gpus: Numbers of GPUs to tell the hours of, ≥ 1.
        rate: TFLOP/s that one of them sustains in training, > 0.

    Raises:
        ValueError: As `stretches`; for a rate or a number out of range.
    """
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"rate: expected a number > 0, got {rate}")
    if min(gpus, default=0) < 1:
        raise ValueError(f"gpus: expected one or more integers >= 1, got {tuple(gpus)}")
    parts = list(stretches(recipe))
    whole = Stretch(
        depth=None,
        length=0,
        tokens=sum(part.tokens for part in parts),
        flops=sum(part.flops for part in parts),
    )
    rows = [(part.name, str(part.length), *_cells(part, gpus, rate)) for part in parts]
    rows.append(("all", "", *_cells(whole, gpus, rate)))
    header = ("depth", "length", "tokens", "FLOPs a token", "FLOPs")
    return Table(
        f"Cost at {rate:g} TFLOP/s a GPU, every sweep made",
        (*header, *(f"hours on {number}" for number in gpus)),
        tuple(rows),
    )


def _cells(part: Stretch, gpus: Sequence[int], rate: float) -> list[str]:
    hours = part.flops / (rate * 1e12) / 3600
    counts = [f"{part.tokens:.4g}", f"{part.flops / part.tokens:.3g}", f"{part.flops:.3g}"]
    return [*counts, *(f"{hours / number:,.1f}" for number in gpus)]
