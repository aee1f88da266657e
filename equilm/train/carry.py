"""Rows that go on from step to step: each begins in the state that it ended in, without gradient.

What a model makes of its own long past is seen in training then, at the cost of a few tokens a
step. Read `trainer.py` next.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from equilm import tree
from equilm.nn.mixer import State
from equilm.nn.model import LanguageModel


class Carried(NamedTuple):
    """Where rows ended, a tree of tensors with the rows first."""

    state: State  # of the model, on its device
    known_B: Tensor  # int64 on the host, what `Task.follow` has to know of a row's past
    length_B: Tensor  # int64 on the host, tokens so far; a row of 0 begins anew


def fresh_state(model: LanguageModel, *, rows: int, capacity: int, noise: float) -> State:
    """Return the state before the first token.

    Args:
        model: Whose.
        rows: B.
        capacity: Tokens that a row may come to.
        noise: Standard deviation of what is added to it.
    """

    def disturbed(part: Tensor) -> Tensor:
        if noise == 0 or not part.is_floating_point():
            return part
        return part + noise * torch.randn_like(part)

    return tree.map_(disturbed, model.init_state(rows, capacity))


def begun(
    model: LanguageModel,
    before: Carried | None,
    *,
    rows: int,
    length: int,
    limit: int,
    noise: float = 0.0,
    mix: float = 0.0,
) -> Carried:
    """Return where rows begin: where they ended, or anew.

    Args:
        model: Gives the state of a row that begins anew.
        before: Where they ended; `None`, or a state of another shape (other rows, other room), lets
            all begin anew.
        rows: B.
        length: Tokens of this step …
        limit: … with which no row may come to more than these; one that would begins anew.
        noise: As for `fresh_state`.
        mix: At most this share of another row's state is mixed into one that goes on.
    """
    fresh = fresh_state(model, rows=rows, capacity=max(length, limit), noise=noise)
    if before is None or _shapes(before.state) != _shapes(fresh):
        nothing_B = torch.zeros(rows, dtype=torch.int64)
        return Carried(fresh, nothing_B, nothing_B)
    anew_B = (before.length_B == 0) | (before.length_B + length > limit)
    state = tree.select(anew_B.to(model.embedding.device), fresh, before.state)
    if mix:  # after the choice: what is not finite would spoil others even at a share of 0
        state = _mixed(state, ~anew_B, mix)
    known_B, length_B = (part.masked_fill(anew_B, 0) for part in before[1:])
    return Carried(state, known_B, length_B)


def _mixed(state: State, goes_on_B: Tensor, most: float) -> State:
    """Mix some of another row's state into each, where both go on."""
    device = next(tree.leaves(state)).device
    other_B = torch.randperm(len(goes_on_B))
    share_B = most * torch.rand(len(goes_on_B)) * (goes_on_B & goes_on_B[other_B])
    other_B, share_B = other_B.to(device), share_B.to(device)

    def mixed(part: Tensor) -> Tensor:
        if not part.is_floating_point():
            return part
        share = share_B.to(part.dtype).view(-1, *[1] * (part.ndim - 1))
        return part.lerp(part[other_B], share)

    return tree.map_(mixed, state)


def _shapes(state: State) -> list[torch.Size]:
    return [leaf.shape for leaf in tree.leaves(state)]


def ended(
    begin: Carried, *, state: State, known_B: Tensor, right_B: Tensor, length: int
) -> Carried:
    """Return where rows end; one whose last answer is wrong begins anew next time.

    Its state stands for something else than the task goes on from; one that is not finite for
    nothing, though the answer to it may be right by chance.

    Args:
        begin: From `begun`.
        state: Of the model after the tokens.
        known_B: From `Task.follow`.
        right_B: Whether the last answer of each row is right, on the model's device.
        length: Tokens of this step.
    """
    parts = [leaf.isfinite().reshape(len(leaf), -1).all(1) for leaf in tree.leaves(state)]
    goes_on_B = torch.stack([right_B, *parts]).all(0).cpu()
    length_B = (begin.length_B + length).where(goes_on_B, 0)
    return Carried(tree.detach(state), known_B, length_B)


def tensors_of(carried: Carried) -> dict[str, Tensor]:
    """Return the tensors by name, on the host, for a file."""
    named = {str(index): leaf for index, leaf in enumerate(tree.leaves(carried))}
    return {name: leaf.detach().cpu().contiguous() for name, leaf in named.items()}


def from_tensors(model: LanguageModel, tensors: Mapping[str, Tensor]) -> Carried:
    """Return what `tensors_of` was given, with the state on the model's device.

    Raises:
        KeyError: If a tensor is missing.
    """
    like = model.init_state(1, 1)
    count = len([*tree.leaves(like)])
    device = model.embedding.device
    leaves = iter([tensors[str(index)].to(device) for index in range(count)])
    state = tree.map_(lambda _: next(leaves), like)
    return Carried(state, tensors[str(count)], tensors[str(count + 1)])
