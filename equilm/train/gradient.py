"""The loss and the gradient of one step, in pieces: rows that fit on a device at once.

    Σ loss / (targets of all ranks), each piece's share going backward as it comes

so that the pieces, on however many ranks, add up to the whole batch's gradient. Read `trainer.py`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from equilm import tree
from equilm.nn.equilibrium import observed
from equilm.nn.model import LanguageModel
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
        recipe: How many rows at once, in which type.
        ranks: All take the same number of pieces.
    """
    (num_targets,) = ranks.total((batch.targets_BT != IGNORE).sum())
    factor = parallel.loss_factor(model, ranks)
    uses_bf16 = recipe.precision == "bf16" and ranks.device.type == "cuda"
    losses, rights, sweeps = [], [], []
    for piece, more in _pieces(batch, recipe.rows_at_once):
        parallel.expect_more(model, more)
        with (
            torch.autocast(ranks.device.type, torch.bfloat16, enabled=uses_bf16),
            observed(model) as solutions,
        ):
            found = model.loss(piece.tokens_BT, piece.targets_BT, ignore=IGNORE)
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


def _pieces(batch: Batch, rows: int | None) -> Iterator[tuple[Batch, bool]]:
    """Yield the pieces of a batch, and whether more follow."""
    count = len(batch.tokens_BT)
    rows = rows or count
    for start in range(0, count, rows):
        stop = start + rows
        piece = tree.map_(lambda part, a=start, b=stop: part[a:b], batch)
        yield piece, stop < count
