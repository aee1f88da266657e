"""Fixed points of any function of tensors: the solver as a tool of its own.

    z = fixed_point(lambda z: torch.tanh(z @ w + x), torch.zeros(8, 64)).value

Not used by the models of this package, which drive `iterate` themselves. Read `iterate.py` next.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from equilm import tree
from equilm.solve.gradient import Gradient, Implicit
from equilm.solve.iterate import Solve, iterate


class FixedPoint(NamedTuple):
    """A fixed point, row by row."""

    value: tree.Tree  # as z0, with a gradient if anything F uses requires one
    status: Tensor  # (B,) a Status
    steps: Tensor  # (B,) evaluations
    residual: Tensor  # (B,) ‖F(z) − z‖ / ‖F(z)‖


def fixed_point(
    function: Callable[[tree.Tree], tree.Tree],
    z0: tree.Tree,
    *,
    solve: Solve | None = None,
    gradient: Gradient | None = None,
) -> FixedPoint:
    """Find z with z = function(z), each row on its own, and make it differentiable.

    Args:
        function: Maps a tensor (B, …), or a tuple of such tensors, to the same shapes. Rows must
            not depend on each other, dimension 0 is the batch.
        z0: The starting point.
        solve: Step rule, tolerance and limits; by default Anderson to 1e-5 in at most 100 steps.
        gradient: `Implicit()` (the default) or `Phantom(…)`; used while autograd records.

    Returns:
        A `FixedPoint`; rows that did not converge say so in `status`.

    Raises:
        ValueError: If `z0` has no batch, or `function` changes the shape of its argument.
    """
    solve = solve or Implicit().solve
    shapes = [tuple(leaf.shape) for leaf in tree.leaves(z0)]
    if not all(shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(f"z0: expected shapes (batch, …) of the same batch, got {shapes}")

    def transition(flat: Tensor) -> tuple[Tensor, None]:
        out = function(_unflatten(flat, z0))
        got = [tuple(leaf.shape) for leaf in tree.leaves(out)]
        if got != shapes:
            raise ValueError(f"function: expected shapes {shapes} as in z0, got {got}")
        return _flatten(out), None

    with torch.no_grad():
        found = iterate(transition, _flatten(z0), solve)
    value = found.value
    if torch.is_grad_enabled():
        value, _ = (gradient or Implicit()).attach(transition, value)
    return FixedPoint(_unflatten(value, z0), found.status, found.steps, found.residual)


def _size(leaf: Tensor) -> int:
    return leaf.shape[1:].numel()


def _flatten(values: tree.Tree) -> Tensor:
    return torch.cat([leaf.reshape(len(leaf), _size(leaf)) for leaf in tree.leaves(values)], dim=1)


def _unflatten(flat: Tensor, like: tree.Tree) -> tree.Tree:
    sizes = [_size(leaf) for leaf in tree.leaves(like)]
    pieces = iter(flat.split(sizes, dim=1))
    return tree.map_(lambda leaf: next(pieces).view_as(leaf), like)
