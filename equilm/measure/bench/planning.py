"""Which rows a benchmark times, on which machine. Read `train_rows.py` next."""

from collections.abc import Sequence
from typing import NamedTuple

from equilm.measure.bench import rows
from equilm.measure.bench.engine_rows import engine_rows
from equilm.measure.bench.generation_rows import PROMPTS, generation_rows
from equilm.measure.bench.mixing_rows import WIDTHS, mixing_rows
from equilm.measure.bench.op_rows import op_rows
from equilm.measure.bench.rows import Row, config_of

LISTED = 8  # labels named in an error
LONG, SHORT = 2048, 256  # tokens of a prompt on a GPU, and elsewhere


class Planned(NamedTuple):
    """A row, and the benchmark that its Records are named after."""

    name: str
    row: Row

    @property
    def label(self) -> str:
        """What a row is chosen by; in curves, what changes along them comes first."""
        curve = self.name.removeprefix("by_")
        return self.row.label if curve == self.name else f"{curve}: {self.row.label}"


def plan(what: str, *, preset: str = "", only: str = "", on_gpu: bool) -> list[Planned]:
    """Return the rows of a benchmark.

    Args:
        what: `train`, `ops`, `decode` or `scaling`.
        preset: Only rows of this model; if there is none, a small one of it.
        only: Only rows whose label contains this; x may stand for ×.
        on_gpu: Whether the published sizes fit.

    Raises:
        ValueError: For an unknown model, or if no row is left; names some labels.
    """
    if preset:
        config_of(preset)
    listed = {
        "train": _train,
        "ops": _ops,
        "decode": _decode,
        "scaling": _scaling,
    }[what](preset, on_gpu)
    wanted = only.replace("×", "x")
    found = [one for one in listed if wanted in one.label.replace("×", "x")]
    if not found:
        told = ", ".join(one.label for one in listed[:LISTED])
        told += f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
        raise ValueError(f"only: expected part of the name of a row, got {only!r}; rows: {told}")
    return found


def _train(preset: str, on_gpu: bool) -> list[Planned]:
    listed = rows.TRAIN_GPU if on_gpu else rows.TRAIN_CPU
    kept = _of(preset, listed)
    if not kept:
        depth = (4, 1) if is_implicit(preset) else None
        kept = (Row(model=preset, batch=1, length=64, depth=depth),)
    return [Planned("train", row) for row in kept]


def _ops(preset: str, on_gpu: bool) -> list[Planned]:
    shapes = rows.SHAPES_GPU if on_gpu else rows.SHAPES_CPU
    if preset:
        shapes = {preset: shapes.get(preset, (4, 2048) if on_gpu else (1, 64))}
    listed = [Planned("ops", row) for row in op_rows(shapes)]
    return listed if preset else listed + _mixers(on_gpu)


def _mixers(on_gpu: bool) -> list[Planned]:
    """Mixers of one width by the length, and models of one size generating by the batch."""
    (large, small), (long, short) = WIDTHS, PROMPTS
    mixing = (large, 2**19, range(9, 20, 2)) if on_gpu else (small, 2**10, range(7, 11))
    model, tokens, powers = mixing
    lengths = [2**n for n in powers]
    found = [Planned("mixing", row) for row in mixing_rows(model, tokens, lengths)]
    generating = rows.GENERATING_GPU if on_gpu else rows.GENERATING_CPU
    tokens_of = generation_rows(generating, long if on_gpu else short)
    return found + [Planned("generation", row) for row in tokens_of]


def _decode(preset: str, on_gpu: bool) -> list[Planned]:
    listed = rows.DECODE_GPU if on_gpu else rows.DECODE_CPU
    kept = _of(preset, listed) or tuple(rows.sweep_row(preset, batch) for batch in (1, 64))
    kept += tuple(engine_rows(kept, LONG if on_gpu else SHORT))
    return [Planned("decode", row) for row in kept]


def _scaling(preset: str, on_gpu: bool) -> list[Planned]:
    """One quantity changed at a time; the length at a constant number of tokens."""
    model = preset or ("mamba2-130m" if on_gpu else "small-mamba2")
    batch, length = (16, 2048) if on_gpu else (4, 32)
    batches = [2**n for n in (range(6) if on_gpu else range(4))]
    lengths = [2**n for n in (range(8, 16) if on_gpu else range(3, 8))]

    solved = is_implicit(model)

    def row(batch: int, length: int, sweeps: int = 4, phantom: int = 1) -> Row:
        depth = (sweeps, phantom) if solved else None
        return Row(model=model, batch=batch, length=length, depth=depth)

    curves = {
        "batch": [row(each, length) for each in batches],
        "length": [row(batch * length // each, each) for each in lengths],
    }
    if solved:
        curves["sweeps"] = [row(batch, length, sweeps=s) for s in (0, 1, 2, 4, 8, 16, 32)]
        curves["phantom"] = [row(batch, length, phantom=k) for k in (1, 2, 3, 4)]
    return [Planned(f"by_{name}", row) for name, curve in curves.items() for row in curve]


def is_implicit(model: str) -> bool:
    """Return whether a model has a solve."""
    return config_of(model).equilibrium is not None


def _of(preset: str, listed: Sequence[Row]) -> tuple[Row, ...]:
    return tuple(row for row in listed if preset in ("", row.model))
