"""Commands about the paper's figures: reproduce."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from equilm.cli.terminal import argument, console, say


def reproduce(
    name: Positional[
        Literal[
            "fig1",
            "fig2",
            "fig3",
            "fig4",
            "fig7",
            "fig13",
            "length",
            "regular",
            "boxes",
            "shuffled",
            "adaptive",
            "mixers",
            "mamba-ablations",
        ]
    ],
    /,
    *,
    quick: bool = False,
    out: Annotated[Path, argument("FOLDER")] = Path("runs/reproduce"),
    data: Annotated[Path | None, argument("FOLDER")] = None,
    only: Annotated[tuple[str, ...], argument("MIXER [MIXER ...]")] = (),
    seeds: Annotated[tuple[int, ...] | None, argument("SEED [SEED ...]")] = None,
    trained_only: bool = False,
) -> None:
    """Make one figure from recipe to plot; what an earlier call trained or measured is used.

    Args:
        name: fig1: layers needed against length. fig2: both modes end at one point. fig3: hard
            tokens and sweeps in training. fig4: text longer than in training. fig7: the Jacobian
            of the state map. fig13: CatbAbI. length: how far the state is tracked. regular:
            regular languages. boxes: what is in a box. shuffled: who has what after swaps.
            adaptive: work by hardness and by tolerance. mixers: the table of all mixers.
            mamba-ablations: S6 with one thing changed.
        quick: Minutes on two CPU cores: smaller tasks and models, one seed; not the figure itself.
        out: Where runs and figures go, below "quick" or "full".
        data: For fig13 a folder of bAbI v1.2 with qa1_train.txt and so on; for boxes and shuffled
            those of their files; for fig4 one that `equilm data prepare` wrote, with documents of
            8,193 tokens in its test split.
        only: Rows of the table of mixers to make; all if left out.
        seeds: Of every run; the figure's own if left out, which is one, 0, if quick.
        trained_only: Train nothing, and draw what is there.
    """
    from equilm.reproduce import FIGURES
    from equilm.reproduce.figures import Settings
    from equilm.reproduce.plan import reproduce as make
    from equilm.train.progress import show
    from equilm.train.trainer import Trainer

    def watch(trainer: Trainer, run: str) -> None:
        show(trainer.run(), name=run, num_steps=trainer.recipe.steps, console=console)

    if only and name != "mixers":
        raise ValueError(f"only: expected with mixers alone, got it with {name}")
    figure = FIGURES[name](Settings(quick=quick, data=data, only=only))
    if seeds is not None:
        if not seeds:
            raise ValueError("seeds: expected one or more integers, got none")
        figure = replace(figure, seeds=tuple(dict.fromkeys(seeds)))
    place = out / ("quick" if quick else "full")
    written = make(figure, place, watch=None if trained_only else watch, say=say)
    if not written:
        raise ValueError(f"{name}: expected a finished run of it in {place / 'runs'}, got none")
    for path in written:
        say(str(path))
