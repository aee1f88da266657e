"""Does this very model keep the laws? Its modes against each other, rows, padding, contraction.

Read `evaluate.py` for accuracy; this file never asks whether an answer is right.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from equilm.measure.evaluate import solving
from equilm.nn.equilibrium import Equilibrium, observed
from equilm.nn.linear import prepared
from equilm.nn.model import LanguageModel
from equilm.report.tables import Table, percent
from equilm.solve.iterate import Solution, Solve, Status
from equilm.solve.picard import Picard
from equilm.solve.spectral import spectral_radius

MODE_TOLERANCE = 1e-3  # of a logit, relative to their norm, at a solver tolerance of 1e-5
ROW_TOLERANCE = 1e-4  # a row's own arithmetic differs by rounding with the batch's size
TIGHT = Solve(solver=Picard(), tolerance=1e-5, max_steps=200)


class Finding(NamedTuple):
    """One thing that was checked."""

    name: str
    measured: str
    expected: str
    ok: bool | None  # none where there is nothing to expect


@torch.no_grad()
def check_model(
    model: LanguageModel, *, length: int = 32, batch_size: int = 8, seed: int = 0
) -> list[Finding]:
    """Check a model on random tokens.

    Args:
        model: Any; put into evaluation mode.
        length: Tokens, ≥ 3.
        batch_size: Sequences, ≥ 2.
        seed: Of the tokens.

    Returns:
        What was found, in the order to read it.

    Raises:
        ValueError: For a length or batch size that is too small.
    """
    check_sizes(length=length, batch_size=batch_size)
    model.eval()
    device = model.embedding.device
    generator = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(model.vocab_size, (batch_size, length), generator=generator)
    tokens_BT = tokens_BT.to(device)
    with solving(model, replace(TIGHT, window=1)), observed(model) as solutions:
        whole_BTV, _ = model(tokens_BT)
    findings = [
        _row(model, tokens_BT, whole_BTV),
        _padding(model, tokens_BT),
        _chunks(model, tokens_BT, whole_BTV),
    ]
    if isinstance(model.core, Equilibrium):
        findings += _modes(model, tokens_BT, whole_BTV)
        findings += _convergence(solutions[0], token_radius(model, tokens_BT))
    return findings


def check_sizes(*, length: int, batch_size: int) -> None:
    """Raise ValueError for a length or batch size too small to check anything on."""
    if length < 3:
        raise ValueError(f"length: expected an integer >= 3, got {length}")
    if batch_size < 2:
        raise ValueError(f"batch_size: expected an integer >= 2, got {batch_size}")


def as_table(findings: list[Finding]) -> Table:
    """Return the findings as a table to print."""
    marks = {True: "ok", False: "FAILS", None: ""}
    rows = tuple((f.name, f.measured, f.expected, marks[f.ok]) for f in findings)
    title = "How far apart the logits of random tokens are, and how they converge"
    return Table(title, ("what", "measured", "expected", ""), rows)


def _row(model: LanguageModel, tokens_BT: Tensor, whole_BTV: Tensor) -> Finding:
    with solving(model, replace(TIGHT, window=1)):
        alone_BTV, _ = model(tokens_BT[:1])
    return _compare("a row alone, in a batch", alone_BTV, whole_BTV[:1], ROW_TOLERANCE)


def _padding(model: LanguageModel, tokens_BT: Tensor) -> Finding:
    length = tokens_BT.shape[1] // 2
    valid_B = torch.full_like(tokens_BT[:, 0], length)
    with solving(model, replace(TIGHT, window=1)):
        padded_BTV, _ = model(tokens_BT, valid_B=valid_B)
        bare_BTV, _ = model(tokens_BT[:, :length])
    return _compare("padded, not padded", padded_BTV[:, :length], bare_BTV, ROW_TOLERANCE)


def _chunks(model: LanguageModel, tokens_BT: Tensor, whole_BTV: Tensor) -> Finding:
    length = tokens_BT.shape[1]
    state = model.init_state(*tokens_BT.shape)
    pieces = []
    with solving(model, replace(TIGHT, window=1)):
        for piece_BT in tokens_BT.split([length // 3, 1, length - length // 3 - 1], dim=1):
            logits_BTV, state = model(piece_BT, state)
            pieces.append(logits_BTV)
    return _compare("in three calls, in one", torch.cat(pieces, 1), whole_BTV, ROW_TOLERANCE)


def _modes(model: LanguageModel, tokens_BT: Tensor, whole_BTV: Tensor) -> list[Finding]:
    length = tokens_BT.shape[1]
    findings = []
    for window in sorted({2, min(8, length), length}):
        name = "simultaneous" if window == length else f"window {window}"
        # Information needs sweeps to travel, so give it as many as there are tokens and more.
        with solving(model, replace(TIGHT, window=window, max_steps=200 + 4 * length)):
            other_BTV, _ = model(tokens_BT)
        same = (other_BTV.argmax(-1) == whole_BTV.argmax(-1)).float().mean().item()
        error = _difference(other_BTV, whole_BTV)
        findings.append(
            Finding(
                f"{name}, sequential",
                f"{error:.1e}, {percent(same)} alike",
                f"≤ {MODE_TOLERANCE:.0e} or 100%",
                error <= MODE_TOLERANCE or (same == 1.0 and math.isfinite(error)),
            )
        )
    return findings


def _convergence(solution: Solution, radius_B: Tensor) -> list[Finding]:
    shares = [
        Finding(
            f"tokens {status.name.lower()}",
            f"{(solution.status == status).float().mean().item():.2%}",
            "",
            None,
        )
        for status in (Status.CONVERGED, Status.CAPPED, Status.CYCLING)
    ]
    evaluations = f"{solution.steps.float().mean().item():.1f}"
    radius = f"{radius_B.median():.3f}, at most {radius_B.max():.3f}"
    return [
        *shares,
        Finding(f"evaluations to {TIGHT.tolerance:.0e}", evaluations, "", None),
        Finding("spectral radius, a token", radius, "< 1 contracts", None),
    ]


@torch.no_grad()
def token_radius(model: LanguageModel, tokens_BT: Tensor) -> Tensor:
    """Return the spectral radius (B,) of ∂F/∂z of the last token at its fixed point.

    Args:
        model: Implicit.
        tokens_BT: (B, T) the sequences, T ≥ 1.
    """
    core = model.core
    assert isinstance(core, Equilibrium)
    rows, length = tokens_BT.shape
    state = model.init_state(rows, length)
    with solving(model, replace(TIGHT, window=1)), prepared(model):
        if length > 1:
            _, state = model(tokens_BT[:, :-1], state)
        last_BTD, _ = core(model.embed(tokens_BT[:, -1:]), state)
        u_BTE = core.inject(model.embed(tokens_BT[:, -1:]))
        return spectral_radius(
            lambda z_BTD: core.body(z_BTD, state, u_BTE),
            last_BTD,
            generator=torch.Generator(device=last_BTD.device).manual_seed(0),
        )


def _compare(name: str, left: Tensor, right: Tensor, tolerance: float) -> Finding:
    error = _difference(left, right)
    return Finding(name, f"{error:.1e}", f"≤ {tolerance:.0e}", error <= tolerance)


def _difference(left: Tensor, right: Tensor) -> float:
    return ((left - right).norm() / right.norm()).item()
