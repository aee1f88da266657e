"""Trees of tensors: nested (named) tuples, batch first. States and solver memories are such trees.

Not a registry and not a container library: seven verbs. Read `equilm/nn/mixer.py` next.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# A Tree is a Tensor, None, or a (named) tuple of Trees.
Tree = Any


def map_(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Apply `function` to the tensors standing at the same place in every tree.

    Args:
        function: Takes one tensor of each tree.
        tree: The tree that gives the shape.
        others: Trees of the same shape.

    Returns:
        A tree of the results; `None` stays `None`.
    """
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        return function(tree, *others)
    parts = [map_(function, part, *rest) for part, *rest in zip(tree, *others, strict=True)]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)


def leaves(tree: Tree) -> Iterator[Tensor]:
    """Yield the tensors of a tree from left to right."""
    if isinstance(tree, Tensor):
        yield tree
    elif tree is not None:
        for part in tree:
            yield from leaves(part)


def take(tree: Tree, rows: Tensor) -> Tree:
    """Return the rows `rows` (integers or a mask over the batch) of every tensor."""
    return map_(lambda leaf: leaf[rows], tree)


def put(tree: Tree, rows: Tensor, values: Tree) -> Tree:
    """Return a copy of `tree` in which `rows` hold `values`; neither argument is changed."""

    def replace(leaf: Tensor, value: Tensor) -> Tensor:
        leaf = leaf.clone()
        leaf[rows] = value
        return leaf

    return map_(replace, tree, values)


def select(mask_B: Tensor, new: Tree, old: Tree) -> Tree:
    """Return, row by row, `new` where the mask holds and `old` elsewhere.

    A buffer shared by both (an attention cache, whose later slots are scratch) is not copied.
    """

    def choose(after: Tensor, before: Tensor) -> Tensor:
        if after is before:
            return after
        mask = mask_B.reshape(mask_B.shape + (1,) * (after.ndim - mask_B.ndim))
        return torch.where(mask, after, before)

    return map_(choose, new, old)


def overwrite(old: Tree, new: Tree) -> None:
    """Copy `new` into the tensors of `old`, where these are not the very same."""
    map_(lambda into, leaf: into.copy_(leaf) if into is not leaf else into, old, new)


def detach(tree: Tree) -> Tree:
    """Return the tree cut off from the autograd graph."""
    return map_(Tensor.detach, tree)
