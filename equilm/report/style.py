"""How every figure looks: one table of settings, one set of colours for light and for dark.

The colours are Okabe and Ito's, which the colour-blind can tell apart, a shade darker where text
is written in them; the last two are for a seventh and an eighth line, and not theirs. In `dark`
the page redraws each of them; nothing else differs.
Read next: `plot.py`.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.colors import LinearSegmentedColormap, to_rgba

# Every name is a CSS variable of the page, so a figure follows the reader's colour scheme.
LIGHT: Mapping[str, str] = {
    "paper": "#ffffff",
    "ink": "#1f2328",
    "muted": "#656d76",
    "faint": "#d9dde2",
    "line-0": "#0068a8",
    "line-1": "#c4500a",
    "line-2": "#007d5a",
    "line-3": "#a8518a",
    "line-4": "#8a6a00",
    "line-5": "#2b8fc7",
    "line-6": "#5b45b0",
    "line-7": "#6b3a1e",
}
DARK: Mapping[str, str] = {
    "paper": "#15181c",
    "ink": "#e4e7ea",
    "muted": "#9aa3ad",
    "faint": "#333940",
    "line-0": "#5cb3e8",
    "line-1": "#f08a4b",
    "line-2": "#3cc79b",
    "line-3": "#dd93c3",
    "line-4": "#d9b23c",
    "line-5": "#8fd0f2",
    "line-6": "#b3a2f5",
    "line-7": "#d2a07c",
}
LINES = tuple(colour for name, colour in LIGHT.items() if name.startswith("line-"))

WIDTH_INCHES = 7.0
FONT_POINTS = 8.5

_SETTINGS: dict[Any, Any] = {
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "savefig.dpi": 200,
    "font.size": FONT_POINTS,
    "axes.titlesize": FONT_POINTS,
    "axes.titlelocation": "left",
    "axes.titlecolor": LIGHT["muted"],
    "axes.titlepad": 8,
    "axes.facecolor": "none",
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LIGHT["faint"],
    "grid.linewidth": 0.6,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.major.size": 3,
    "xtick.major.width": 0.6,
    "ytick.major.size": 0,
    "text.color": LIGHT["ink"],
    # A run may be called "a$b$c"; superscripts are written in Unicode instead.
    "text.parse_math": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "equilm",
}


def style() -> AbstractContextManager[None]:
    """Inside this context figures are drawn and written in the house's style, nowhere else."""
    return matplotlib.rc_context(_SETTINGS)


def _fading(name: str, stops: list[tuple[float, str, float]]) -> LinearSegmentedColormap:
    coloured = [(at, to_rgba(colour, alpha)) for at, colour, alpha in stops]
    return LinearSegmentedColormap.from_list(name, coloured)


# Zero is the paper itself: a map that fades to nothing is right on a light and a dark page.
EFFORT = _fading("effort", [(0, "#d55e00", 0.04), (1, "#d55e00", 1)])
SIGNED = _fading(
    "signed",
    [(0, "#1a80c4", 1), (0.5, "#1a80c4", 0), (0.5, "#d55e00", 0), (1, "#d55e00", 1)],
)
# Early to late: all of middle lightness, so that lines show on both pages.
POSITION = LinearSegmentedColormap.from_list("position", ["#3590c4", "#a06fb5", "#d55e00"])
