"""How strongly F contracts at a point: spectral radius and norm of its Jacobian.

Both see F only through vector–Jacobian products. Read `equilm/measure/check.py` next.
"""

import torch
from torch import Tensor

from equilm.solve.iterate import Transition


def spectral_radius(
    transition: Transition, z: Tensor, *, steps: int = 50, generator: torch.Generator
) -> Tensor:
    """max |eigenvalue| of ∂F/∂z, row by row, by power iteration on the transpose.

    The geometric mean of the growth over the last half of the steps, so that a complex pair, whose
    growth oscillates, is averaged out.

    Args:
        transition: z ↦ (F(z), aux); rows do not depend on each other.
        z: (B, …) the point.
        steps: Vector–Jacobian products, ≥ 2.
        generator: Draws the starting vector.

    Returns:
        (B,) float32.
    """
    apply = _transposed_jacobian(transition, z)
    v = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
    v = v / _row_norm(v)
    log_growth = []
    for _ in range(steps):
        w = apply(v)
        norm = _row_norm(w).clamp(min=torch.finfo(z.dtype).tiny)
        log_growth.append(norm.log().flatten())
        v = w / norm
    return torch.stack(log_growth[steps // 2 :]).mean(0).exp().float()


def jacobian_norm(
    transition: Transition, z: Tensor, *, samples: int = 8, generator: torch.Generator
) -> Tensor:
    """‖∂F/∂z‖_F / sqrt(N), row by row, by Hutchinson's estimator.

    Args:
        transition: z ↦ (F(z), aux); rows do not depend on each other.
        z: (B, …) the point, N numbers a row.
        samples: Random vectors, ≥ 1.
        generator: Draws them.

    Returns:
        (B,) float32.

    Source: Bai et al. 2021, arXiv 2106.14342.
    """
    apply = _transposed_jacobian(transition, z)
    total = torch.zeros(z.shape[0], device=z.device)
    for _ in range(samples):
        v = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        total += apply(v).float().flatten(1).square().mean(1)
    return (total / samples).sqrt()


def _transposed_jacobian(transition: Transition, z: Tensor):  # type: ignore[no-untyped-def]
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        fz, _ = transition(z)

    def apply(v: Tensor) -> Tensor:
        return torch.autograd.grad(fz, z, v.to(fz.dtype), retain_graph=True)[0]

    return apply


def _row_norm(v: Tensor) -> Tensor:
    return v.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.ndim - 1))
