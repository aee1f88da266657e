"""What sweeps in 8 bits do to a trained model: its fixed point, its loss, its gradient.

The same batch is solved in full and with `Solve(precision="fp8")`, both with the same number of
sweeps and of phantom steps; the steps with gradient are in full in both. Read `check.py` too.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.measure.evaluate import solving
from equilm.nn.equilibrium import Equilibrium, observed
from equilm.nn.linear import prepared
from equilm.nn.model import LanguageModel
from equilm.report.tables import Table
from equilm.solve.gradient import Phantom
from equilm.solve.move import relative_residual
from equilm.tasks import IGNORE, Batch, cross_entropy_sum


class Solved(NamedTuple):
    """One batch at one precision."""

    after_sweeps: float  # median over tokens of ‖F(z) − z‖ / ‖F(z)‖, F in full
    after_steps: float  # the same after the phantom steps
    loss: float  # nats
    prediction_BT: Tensor
    gradient: Tensor  # of all parameters in one vector


def compare_precision(model: LanguageModel, batch: Batch, *, sweeps: int, steps: int) -> Table:
    """Solve a batch in full and in 8 bits.

    Args:
        model: An implicit one; computes in the autocast type around the call.
        batch: Tokens and targets of the task that the model was trained on.
        sweeps: Without gradient; all of them run.
        steps: Of the phantom gradient.

    Returns:
        A table: residuals, loss, share of equal predictions, cosine of the gradients.

    Raises:
        ValueError: For an explicit model.
    """
    core = model.core
    if not isinstance(core, Equilibrium):
        raise ValueError("precision: expected an implicit model, got an explicit one")
    before = core.gradient
    core.gradient = Phantom(steps=steps)
    solve = replace(core.solve, tolerance=0.0, max_steps=sweeps, cycle=None, window=None)
    try:
        with solving(model, solve):
            full = _solved(model, core, batch)
        with solving(model, replace(solve, precision="fp8")):
            low = _solved(model, core, batch)
    finally:
        core.gradient = before
    equal = (full.prediction_BT == low.prediction_BT).float().mean().item()
    cosine = F.cosine_similarity(full.gradient, low.gradient, dim=0).item()
    ratio = (low.gradient.norm() / full.gradient.norm()).item()
    rows = (
        (
            "residual after the sweeps, median",
            f"{full.after_sweeps:.1e}",
            f"{low.after_sweeps:.1e}",
        ),
        ("residual after the steps, median", f"{full.after_steps:.1e}", f"{low.after_steps:.1e}"),
        ("loss, nats", f"{full.loss:.5f}", f"{low.loss:.5f}"),
        ("equal predictions", "", f"{equal:.4%}"),
        ("cosine of the gradients", "", f"{cosine:.5f}"),
        ("ratio of their norms", "", f"{ratio:.4f}"),
    )
    title = f"{sweeps} sweeps without gradient, {steps} steps in full"
    return Table(title, ("", "in full", "fp8"), rows)


def _solved(model: LanguageModel, core: Equilibrium, batch: Batch) -> Solved:
    with observed(model) as solutions:
        z_BTD, _ = core(model.embed(batch.tokens_BT))
    logits_BTV = model.logits(z_BTD)
    total, count = cross_entropy_sum(logits_BTV, batch.targets_BT)
    loss = total / count
    gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    asked_BT = batch.targets_BT != IGNORE
    with torch.no_grad(), prepared(core):
        u_BTE = core.inject(model.embed(batch.tokens_BT))

        def residual(point_BTD: Tensor) -> float:
            fz_BTD, _ = core.body(point_BTD, None, u_BTE)
            return relative_residual(fz_BTD, point_BTD)[asked_BT].median().item()

        after_sweeps, after_steps = residual(solutions[0].value), residual(z_BTD)
    return Solved(
        after_sweeps,
        after_steps,
        loss.item(),
        logits_BTV.argmax(-1)[asked_BT],
        torch.cat([gradient.flatten() for gradient in gradients]),
    )
