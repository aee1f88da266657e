"""The loss and the gradient of one step, in pieces: rows that fit on a device, tokens in windows.

    Σ loss / (targets of all ranks), each piece's share going backward as it comes

so that pieces of rows, on however many ranks, add up to the whole batch's gradient. Windows pass
their state on, and no gradient. Read `trainer.py` next.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from equilm import tree
from equilm.nn.equilibrium import observed
from equilm.nn.mixer import State
from equilm.nn.model import LanguageModel
from equilm.ops.cross_entropy import CrossEntropy
from equilm.tasks import IGNORE, Batch
from equilm.train import parallel
from equilm.train.carry import fresh_state
from equilm.train.parallel import Ranks
from equilm.train.recipe import Recipe


class Found(NamedTuple):
    """Of the whole batch, over all ranks."""

    loss: Tensor  # nats a target, a scalar in float32
    accuracy: float  # share of the targets
    sweeps: float  # a solve
    state: State  # of this rank's rows after their tokens, if they began in a state
    right_B: Tensor  # whether the last answer of each of this rank's rows is right


def accumulate(
    model: LanguageModel, batch: Batch, recipe: Recipe, ranks: Ranks, begin: State = None
) -> Found:
    """Add the gradient of the mean loss over all ranks' rows to `.grad`, and return the loss.

    Args:
        model: Its parameters may be spread over the ranks.
        batch: This rank's rows, on its device.
        recipe: How many rows at once, windows, first states, type.
        ranks: All take the same number of pieces.
        begin: The state that this rank's rows begin in; `None` is that of the recipe.
    """
    (num_targets,) = ranks.total((batch.targets_BT != IGNORE).sum())
    factor = parallel.loss_factor(model, ranks)
    uses_bf16 = recipe.precision == "bf16" and ranks.device.type == "cuda"
    losses, rights, sweeps, ends = [], [], [], []
    state: State = None
    for piece, rows, place, more in _pieces(batch, recipe):
        parallel.expect_more(model, more)
        with (
            torch.autocast(ranks.device.type, torch.bfloat16, enabled=uses_bf16),
            observed(model) as solutions,
        ):
            if place.first:
                state = tree.map_(lambda leaf, rows=rows: leaf[rows], begin)
                if begin is None:
                    state = _first_state(model, batch, len(piece.tokens_BT), recipe)
            found, state = _loss(model, piece, state)
        (found.loss_sum / num_targets * factor).backward()
        losses.append(found.loss_sum.detach())
        rights.append(found.num_correct)
        if place.last:
            ends.append((state, found.right[:, -1]))
        sweeps += [solution.sweeps for solution in solutions]
    parallel.reduce_gradients(model, ranks)
    mean_sweeps = torch.tensor(sum(sweeps) / max(1, len(sweeps)), dtype=torch.float64)
    loss, right, swept = ranks.total(
        torch.stack(losses).sum(), torch.stack(rights).sum(), mean_sweeps.to(ranks.device)
    )
    after, right_B = tree.map_(lambda *parts: torch.cat(parts), *ends)
    return Found(
        loss / num_targets,
        (right / num_targets).item(),
        swept.item() / ranks.size,
        after,
        right_B,
    )


class _Place(NamedTuple):
    """Whether a piece is the first of its rows, and the last."""

    first: bool
    last: bool


def _pieces(batch: Batch, recipe: Recipe) -> Iterator[tuple[Batch, slice, _Place, bool]]:
    """Yield the pieces of a batch, whose rows they are, their place there, whether more follow."""
    count, length = batch.tokens_BT.shape
    rows, window = recipe.rows_at_once or count, recipe.gradient_length or length
    for first in range(0, count, rows):
        for start in range(0, length, window):
            here = slice(first, first + rows), slice(start, start + window)
            piece = tree.map_(lambda part, here=here: part[here], batch)
            place = _Place(start == 0, start + window >= length)
            yield piece, here[0], place, first + rows < count or not place.last


def _first_state(model: LanguageModel, batch: Batch, rows: int, recipe: Recipe) -> State:
    """Return the state that rows begin at; `None` where it is fresh and nobody goes on from it."""
    length = batch.tokens_BT.shape[1]
    if not recipe.state_noise and length <= (recipe.gradient_length or length):
        return None
    return fresh_state(model, rows=rows, capacity=length, noise=recipe.state_noise)


def _loss(model: LanguageModel, piece: Batch, state: State) -> tuple[CrossEntropy, State]:
    if state is None:
        return model.loss(piece.tokens_BT, piece.targets_BT, ignore=IGNORE), None
    return model.loss_from(piece.tokens_BT, piece.targets_BT, state, ignore=IGNORE)
