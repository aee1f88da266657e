"""All figures: what Records are enough for is drawn, in the order of FIGURES.

A new figure is one function, Records in and a Plot or None out, and one row in FIGURES.
Read next: `page.py`.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from equilm.record import Record
from equilm.report import curves, extrapolation, language, maps, mixing, scaling, traffic
from equilm.report.plot import Plot

FIGURES: tuple[Callable[[Iterable[Record]], Plot | None], ...] = (
    curves.accuracy_by_length,
    curves.accuracy_by_position,
    extrapolation.perplexity_by_length,
    language.perplexity_by_position,
    language.perplexity_by_sweeps,
    language.evaluations_by_position,
    maps.effort_map,
    curves.residual_curves,
    maps.jacobian_maps,
    curves.training_curves,
    extrapolation.validation_curves,
    scaling.scaling_curves,
    mixing.mixer_curves,
    traffic.traffic_curves,
)


def draw(records: Iterable[Record]) -> list[Plot]:
    """Every figure that the Records are enough for, in the order of FIGURES."""
    records = list(records)
    return [drawn for figure in FIGURES if (drawn := figure(records)) is not None]


def save(folder: str | Path, records: Iterable[Record], *, suffix: str = ".png") -> list[Path]:
    """Write every figure to a file of its own, named after it.

    Args:
        folder: made if it is not there.
        records: what to draw.
        suffix: ".png", ".svg" or ".pdf".

    Returns:
        The files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {folder / f"{each.name}{suffix}": each for each in draw(records)}
    for path, each in drawn.items():
        each.save(path)
    return list(drawn)
