"""What a step rule is. A solver proposes the next iterate; it has no loop and no tolerance.

Everywhere in `solve` an unknown is one vector along the last dimension; all leading dimensions hold
independent unknowns (or a chain of them). Read `picard.py`, then `iterate.py`.
"""

from typing import Any, Protocol

from torch import Tensor

Memory = Any  # a tree of tensors, each with the leading dimensions of z


class Solver(Protocol):
    """A frozen dataclass with the two functions of a fixed-point step rule."""

    def init(self, z: Tensor) -> Memory:
        """Return the memory before the first step from z (..., N)."""

    def step(self, z: Tensor, fz: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Return the next iterate (..., N) from z and F(z), and the next memory; change nothing."""
