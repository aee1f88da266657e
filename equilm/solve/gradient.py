"""What attaches a backward pass to a fixed point found without one.

A gradient takes F and z* and returns z with a graph, together with what the last evaluation of F
yielded beside it. Both are usable on any F. Read `equilm/nn/equilibrium.py` next.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from equilm.solve.anderson import Anderson
from equilm.solve.iterate import Solve, Status, Transition, iterate


class NotConverged(RuntimeError):
    """The linear system of an exact implicit gradient was not solved to its tolerance."""


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """`steps` differentiable damped evaluations from z*: z ← z + damping · (F(z) − z).

    Memory grows with `steps` and with nothing else. With `Solve(max_steps=0)` this is the plain
    unrolled network of that depth.

    Args:
        steps: Evaluations, ≥ 1.
        damping: In (0, 1].
        residual_weight: Of what z adds to the loss, by its gradient alone: the sum over unknowns of
            ‖F(z) − z‖² / ‖F(z)‖² where the last step is taken, ≥ 0. It costs no evaluation.

    Source: Geng et al. 2021, arXiv 2111.05177; λ = 0.8 and (24+4) as in arXiv 2502.07827.
    """

    kind: Literal["phantom"] = "phantom"
    steps: int = 4
    damping: float = 0.8
    residual_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: expected an integer >= 1, got {self.steps}")
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping: expected a number in (0, 1], got {self.damping}")
        if not self.residual_weight >= 0:
            raise ValueError(f"residual_weight: expected a number >= 0, got {self.residual_weight}")

    def attach(self, transition: Transition, z: Tensor) -> tuple[Tensor, Any]:
        """Return z after the steps, with their graph, and what the last evaluation yielded."""
        z, aux = z.detach(), None
        before, fz = z, z
        for _ in range(self.steps):
            before = z
            fz, aux = transition(z)
            z = torch.lerp(z, fz.to(z.dtype), self.damping)
        if self.residual_weight and z.requires_grad:
            z = _Charged.apply(z, self.residual_weight * _squared_residual(fz, before).sum())
        return z, aux


class _Charged(torch.autograd.Function):
    """A value as it is, beside whose gradient a scalar is added to the loss."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, charge: Tensor) -> Tensor:
        ctx.save_for_backward(charge)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        (charge,) = ctx.saved_tensors
        return cotangent, torch.ones_like(charge)


def _squared_residual(fz: Tensor, z: Tensor) -> Tensor:
    fz = fz.to(torch.promote_types(fz.dtype, torch.float32))
    bottom = fz.square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)
    return (fz - z).square().sum(-1) / bottom


def _adjoint() -> Solve:
    return Solve(solver=Anderson(damping=1.0), tolerance=1e-5, max_steps=100, cycle=None)


@dataclass(frozen=True, kw_only=True)
class Implicit:
    """The exact gradient by the implicit function theorem: w = v + (∂F/∂z)ᵀ w, then (∂F/∂θ)ᵀ w.

    Args:
        solve: How to solve for w. Each row (first dimension) is one unknown.

    Source: Bai et al. 2019, arXiv 1909.01377.
    """

    kind: Literal["implicit"] = "implicit"
    solve: Solve = field(default_factory=_adjoint)

    def attach(self, transition: Transition, z: Tensor) -> tuple[Tensor, Any]:
        """Return F(z*) with the exact gradient, and what an evaluation there yields.

        Raises:
            NotConverged: In the backward pass, if w is not found to the tolerance.
        """
        z_in = z.detach().requires_grad_()
        fz, _ = transition(z_in)

        def solve_adjoint(cotangent: Tensor | None) -> Tensor | None:
            # Autograd passes `None` where nothing downstream depends on the value.
            return None if cotangent is None else self._solve_adjoint(fz, z_in, cotangent)

        value = fz.clone()
        if value.requires_grad:
            value.register_hook(solve_adjoint)
        # The second evaluation carries the cotangents of aux into the adjoint system.
        _, aux = transition(value)
        return value, aux

    def _solve_adjoint(self, fz: Tensor, z_in: Tensor, cotangent: Tensor) -> Tensor:
        rows = cotangent.shape[0] if cotangent.ndim > 1 else 1

        def adjoint(w: Tensor) -> tuple[Tensor, None]:
            (product,) = torch.autograd.grad(
                fz, z_in, w.view_as(fz), retain_graph=True, materialize_grads=True
            )
            return (cotangent + product).reshape(rows, -1), None

        found = iterate(adjoint, cotangent.reshape(rows, -1), self.solve)
        # A row without a cotangent has w = 0, whose relative residual says nothing.
        silent = cotangent.reshape(rows, -1).abs().amax(-1) == 0
        bad = (found.status != Status.CONVERGED) & ~silent
        if bad.any():
            worst = found.residual[bad].max().item()
            raise NotConverged(
                f"implicit gradient: {int(bad.sum())} of {rows} rows not converged after "
                f"{found.sweeps} steps (worst residual {worst:.1e}, tolerance "
                f"{self.solve.tolerance:.1e}); raise gradient.solve.max_steps, or use Phantom"
            )
        return found.value.view_as(cotangent)


Gradient = Phantom | Implicit
