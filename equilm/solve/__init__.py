"""Fixed points: one sweep, many step rules, the sliding window, gradients.

Read `iterate.py` first.
"""

from equilm.solve.anderson import Anderson
from equilm.solve.broyden import Broyden
from equilm.solve.fixed_point import FixedPoint, fixed_point
from equilm.solve.gradient import Gradient, Implicit, NotConverged, Phantom
from equilm.solve.iterate import CycleRule, Solution, Solve, Status, iterate
from equilm.solve.picard import Picard
from equilm.solve.spectral import jacobian_norm, spectral_radius
from equilm.solve.step import Solver
from equilm.solve.window import slide

# Every step rule by its `kind`; tests run over this table.
SOLVERS: dict[str, type[Solver]] = {"picard": Picard, "anderson": Anderson, "broyden": Broyden}

__all__ = [
    "SOLVERS",
    "Anderson",
    "Broyden",
    "CycleRule",
    "FixedPoint",
    "Gradient",
    "Implicit",
    "NotConverged",
    "Phantom",
    "Picard",
    "Solution",
    "Solve",
    "Solver",
    "Status",
    "fixed_point",
    "iterate",
    "jacobian_norm",
    "slide",
    "spectral_radius",
]
