"""Blocks that are computed again in the backward pass instead of kept: less memory, more time.

    with recomputed(model.core, partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)):
        loss = ...

Applied from outside, for one forward; the sweeps keep nothing anyhow. Read `block.py` next.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from equilm.nn.block import Stack
from equilm.nn.linear import Prepared

# (function, *arguments) → function(*arguments), and the same again in the backward pass
Checkpoint = Callable[..., Any]


@contextmanager
def recomputed(core: nn.Module, checkpoint: Checkpoint) -> Iterator[None]:
    """Keep only the inputs of every block while autograd records inside the `with`.

    Args:
        core: Every `Stack` in it is concerned.
        checkpoint: `torch.utils.checkpoint.checkpoint` with its `use_reentrant` set, or one like
            it. Reentrant, it passes no gradient on to a state.
    """
    stacks = [part for part in core.modules() if isinstance(part, Stack)]
    before = [stack.call for stack in stacks]
    for stack in stacks:
        stack.call = partial(_call, checkpoint)
    try:
        yield
    finally:
        for stack, call in zip(stacks, before, strict=True):
            stack.call = call


def _call(checkpoint: Checkpoint, block: nn.Module, *arguments: Any) -> Any:
    if not torch.is_grad_enabled():
        return block(*arguments)
    return checkpoint(_Repeatable(block), *arguments)


class _Repeatable:
    """A block that may be called again when the constants of its forward are long forgotten."""

    def __init__(self, block: nn.Module) -> None:
        self.block, self.was_called = block, False
        self.parts = [part for part in block.modules() if isinstance(part, Prepared)]
        self.held = [_constants(part) for part in self.parts]

    def __call__(self, *arguments: Any) -> Any:
        if self.was_called:
            with _holding(self.parts, self.held):
                return self.block(*arguments)
        self.was_called = True
        if not torch.is_grad_enabled():
            # A reentrant backward pass has a graph of its own, which must not lead outside.
            self.held = [_without_graph(constants) for constants in self.held]
        result = self.block(*arguments)
        # A dropout mask drawn on the way is the same for the second call.
        for part, constants in zip(self.parts, self.held, strict=True):
            now = _without_graph(_constants(part))
            constants.update({n: now[n] for n, value in constants.items() if value is None})
        return result


@contextmanager
def _holding(parts: list[Prepared], held: list[dict[str, Any]]) -> Iterator[None]:
    now = [_constants(part) for part in parts]
    for part, constants in zip(parts, held, strict=True):
        part.__dict__.update(constants)
    try:
        yield
    finally:
        for part, constants in zip(parts, now, strict=True):
            part.__dict__.update(constants)


def _constants(part: Prepared) -> dict[str, Any]:
    """What `prepare` sets and `release` forgets: tensors that are no parameters, and flags."""
    return {
        name: value
        for name, value in part.__dict__.items()
        if value is None or isinstance(value, Tensor | bool)
    }


def _without_graph(constants: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, Tensor) and value.requires_grad else value
        for name, value in constants.items()
    }
