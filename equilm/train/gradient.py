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
from equilm.train.parallel import Ranks
from equilm.train.recipe import Recipe


class Found(NamedTuple):
    """Of the whole batch, over all ranks."""

    loss: Tensor  # nats a target, a scalar in float32
    accuracy: float  # share of the targets
    sweeps: float  # a solve


def accumulate(model: LanguageModel, batch: Batch, recipe: Recipe, ranks: Ranks) -> Found:
    """Add the gradient of the mean loss over all ranks' rows to `.grad`, and return the loss.

    Args:
        model: Its parameters may be spread over the ranks.
        batch: This rank's rows, on its device.
        recipe: How many rows at once, windows, first states, type.
        ranks: All take the same number of pieces.
    """
    (num_targets,) = ranks.total((batch.targets_BT != IGNORE).sum())
    factor = parallel.loss_factor(model, ranks)
    uses_bf16 = recipe.precision == "bf16" and ranks.device.type == "cuda"
    losses, rights, sweeps = [], [], []
    state: State = None
    for piece, begins, more in _pieces(batch, recipe):
        parallel.expect_more(model, more)
        with (
            torch.autocast(ranks.device.type, torch.bfloat16, enabled=uses_bf16),
            observed(model) as solutions,
        ):
            if begins:
                state = _first_state(model, batch, len(piece.tokens_BT), recipe)
            found, state = _loss(model, piece, state)
        (found.loss_sum / num_targets * factor).backward()
        losses.append(found.loss_sum.detach())
        rights.append(found.num_correct)
        sweeps += [solution.sweeps for solution in solutions]
    parallel.reduce_gradients(model, ranks)
    mean_sweeps = torch.tensor(sum(sweeps) / max(1, len(sweeps)), dtype=torch.float64)
    loss, right, swept = ranks.total(
        torch.stack(losses).sum(), torch.stack(rights).sum(), mean_sweeps.to(ranks.device)
    )
    return Found(loss / num_targets, (right / num_targets).item(), swept.item() / ranks.size)


def _pieces(batch: Batch, recipe: Recipe) -> Iterator[tuple[Batch, bool, bool]]:
    """Yield the pieces of a batch, whether each begins its rows, and whether more follow."""
    count, length = batch.tokens_BT.shape
    rows, window = recipe.rows_at_once or count, recipe.gradient_length or length
    for first in range(0, count, rows):
        for start in range(0, length, window):
            here = slice(first, first + rows), slice(start, start + window)
            piece = tree.map_(lambda part, here=here: part[here], batch)
            yield piece, start == 0, first + rows < count or start + window < length


def _first_state(model: LanguageModel, batch: Batch, rows: int, recipe: Recipe) -> State:
    """Return the state that rows begin at; `None` where it is fresh and nobody goes on from it."""
    length = batch.tokens_BT.shape[1]
    if not recipe.state_noise and length <= (recipe.gradient_length or length):
        return None
    fresh = model.init_state(rows, length)
    return tree.map_(lambda part: _disturbed(part, recipe.state_noise), fresh)


def _disturbed(part: Tensor, deviation: float) -> Tensor:
    if deviation == 0 or not part.is_floating_point():
        return part
    return part + deviation * torch.randn_like(part)


def _loss(model: LanguageModel, piece: Batch, state: State) -> tuple[CrossEntropy, State]:
    if state is None:
        return model.loss(piece.tokens_BT, piece.targets_BT, ignore=IGNORE), None
    return model.loss_from(piece.tokens_BT, piece.targets_BT, state, ignore=IGNORE)
