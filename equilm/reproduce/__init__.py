"""The paper's figures, each from recipe to plot. Read `plan.py`, then `figures.py`."""

from collections.abc import Callable

from equilm.reproduce import ablations, contexts, figures, languages, mixers, stories
from equilm.reproduce.plan import Figure

__all__ = ["FIGURES"]

FIGURES: dict[str, Callable[[figures.Settings], Figure]] = {
    "fig1": figures.fig1,
    "fig2": figures.fig2,
    "fig3": figures.fig3,
    "fig4": contexts.fig4,
    "fig7": figures.fig7,
    "fig13": stories.fig13,
    "length": figures.length,
    "regular": languages.regular,
    "boxes": stories.boxes,
    "shuffled": stories.shuffled,
    "adaptive": figures.adaptive,
    "mixers": mixers.mixers,
    "mamba-ablations": ablations.mamba_ablations,
}
