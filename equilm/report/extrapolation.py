"""Language models while they learn, and beyond the length they learnt on.

Figures from the Records of a run and of `equilm evaluate --text`. Read `language.py` first.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from equilm.record import Record
from equilm.report import plot, select
from equilm.report.curves import colours, mark_trained, stroke_of
from equilm.report.language import longest_texts, name_text, panels_of, perplexity_axis
from equilm.report.plot import End, Plot
from equilm.report.select import Line
from equilm.report.style import style

VALID = "valid"


class Checkpoint(NamedTuple):
    """The loss of a checkpoint on text that was kept back."""

    step: int
    seconds: float  # of training until then; NaN where no Record tells
    nats: float


def perplexity_by_length(records: Iterable[Record]) -> Plot | None:
    """Perplexity of whole contexts against their length: a line a model and mode."""
    records = list(records)
    lines = {
        line: by_length
        for line, by_length in select.lines(records, "perplexity").items()
        if len(by_length) > 1
    }
    if not lines:
        return None
    shown = longest_texts(lines)
    with style():
        figure, grid, inner = panels_of(shown)
        for axes, (text, same) in zip(grid, shown.items(), strict=True):
            lengths = {length for by_length in same.values() for length in by_length}
            plot.length_axis(axes, lengths, "tokens of context" if axes is grid[-1] else "")
            drawn = {}
            for line, colour in colours(same).items():
                seeds = [[select.number(r) for r in at] for at in same[line].values()]
                nats = np.log([np.mean(each) for each in seeds])
                axes.plot(list(same[line]), nats, **stroke_of(line), color=colour, clip_on=False)
                drawn[select.label(line, same)] = End(nats[-1], colour, stroke_of(line))
            perplexity_axis(axes)
            name_text(axes, text, shown)
            plot.label_ends(axes, drawn, height=inner)
            mark_trained(axes, records)
    caption = "Each point is the mean over all tokens of the same rows, cut at that length: more "
    caption += "context helps a model whose line falls, and harms one whose line rises."
    return Plot("length-perplexity", "Perplexity against length", caption, figure)


def validation_curves(records: Iterable[Record]) -> Plot | None:
    """Loss on text that was kept back, against the step and against the seconds of training."""
    lines = {line: found for line, found in _checkpoints(list(records)).items() if len(found) > 1}
    if not lines:
        return None
    with style():
        figure, grid = plot.canvas(2, height=4.6)
        for axes, field in zip(grid, ("step", "seconds"), strict=True):
            ends = {}
            for line, colour in colours(lines).items():
                nats = [checkpoint.nats for checkpoint in lines[line]]
                x = [getattr(checkpoint, field) for checkpoint in lines[line]]
                axes.plot(x, nats, **stroke_of(line), color=colour)
                ends[select.label(line, lines)] = End(nats[-1], colour, stroke_of(line))
            axes.set_xlim(left=0)
            axes.set_xlabel("step" if field == "step" else "seconds of training")
            if axes is grid[0]:
                axes.set_title("loss on text that was kept back, nats")
                plot.label_ends(axes, ends, height=1.8)
    caption = "Each point is a checkpoint, on the same rows. Steps of one batch size are tokens; "
    caption += "seconds are those of the device, without measuring and saving."
    return Plot("validation", "Learning, by tokens and by time", caption, figure)


def _checkpoints(records: Sequence[Record]) -> dict[Line, list[Checkpoint]]:
    """The checkpoints of each model on each text, in order; the last word on each."""
    clocks = {model: run for (model, _), run in select.training(records, "seconds").items()}
    found: dict[Line, dict[int, Checkpoint]] = {}
    for one in records:
        if one.name != "loss" or one.split != VALID or one.step is None:
            continue
        clock = clocks.get(one.model, [])
        seconds = np.nan
        if clock:
            steps = [float(told.step or 0) for told in clock]
            seconds = float(np.interp(one.step, steps, [select.number(told) for told in clock]))
        line = Line(one.model, one.task, one.split, "")
        found.setdefault(line, {})[one.step] = Checkpoint(one.step, seconds, select.number(one))
    return {line: [by_step[step] for step in sorted(by_step)] for line, by_step in found.items()}
