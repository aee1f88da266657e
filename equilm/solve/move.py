"""How far an unknown is from solved, and where it goes next: the passes over z beside F itself.

On a GPU each is one kernel (`move_triton.py`). Read `iterate.py` next.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from equilm.solve.picard import Picard
from equilm.solve.step import Solver


class Step(NamedTuple):
    """Where unknowns go if they move: z + share · (target − z)."""

    target: Tensor  # (..., N)
    share: Tensor | None  # (...) float32; `None` means 1
    memory: Any  # of the step rule


def relative_residual(fz: Tensor, z: Tensor) -> Tensor:
    """‖F(z) − z‖ / ‖F(z)‖ over the last dimension, in float32."""
    if _fused(z):
        from equilm.solve.move_triton import residual

        return residual(fz, z)
    # The difference of nearly equal numbers is taken before they are rounded.
    fz = fz.to(torch.promote_types(fz.dtype, torch.float32))
    bottom = torch.linalg.vector_norm(fz, dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    return (torch.linalg.vector_norm(fz - z, dim=-1) / bottom).float()


def stepped(solver: Solver, z: Tensor, fz: Tensor, memory: Any, relax: Tensor | None) -> Step:
    """Ask the step rule; `relax` (...) is the share of its step that is taken."""
    if isinstance(solver, Picard) and _fused(z):
        # Its step is a share of the way to F(z) already.
        if relax is not None:
            return Step(fz, relax * solver.damping, memory)
        return Step(fz, torch.full(z.shape[:-1], solver.damping, device=z.device), memory)
    # Autocast would compute the products of the step rule in half precision.
    with torch.autocast(z.device.type, enabled=False):
        target, memory = solver.step(z, fz, memory)
    if relax is not None:
        target = torch.lerp(z, target, relax[..., None].to(target.dtype))
    return Step(target, None, memory)


def moved(
    z: Tensor,
    best_z: Tensor,
    step: Step,
    better: Tensor,
    moves: Tensor,
    gave_up: Tensor,
    *,
    inplace: bool,
) -> tuple[Tensor, Tensor]:
    """Return the next z and best z.

    Args:
        z: (..., N) as last measured.
        best_z: (..., N).
        step: Where those go that move.
        better: (...) whether z is the best yet.
        moves: (...) who moves.
        gave_up: (...) who goes back to its best point instead.
        inplace: Whether a GPU may write into z and best_z.
    """
    if _fused(z):
        from equilm.solve.move_triton import move

        return move(z, best_z, step.target, step.share, better, moves, gave_up, inplace=inplace)
    best_z = torch.where(better[..., None], z, best_z)
    resting = torch.where(gave_up[..., None], best_z, z)
    return torch.where(moves[..., None], step.target, resting), best_z


def _fused(z: Tensor) -> bool:
    return z.is_cuda and z.dtype == torch.float32
