"""Broyden's method with limited memory. Read `iterate.py` next."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class BroydenMemory(NamedTuple):
    """Factors of the inverse Jacobian of g: H = −damping·I + Σ u_i v_iᵀ, and the last point."""

    u: Tensor  # (..., depth, N)
    v: Tensor  # (..., depth, N)
    last_z: Tensor  # (..., N)
    last_g: Tensor  # (..., N)
    age: Tensor  # (...), int64: steps since the last restart


@dataclass(frozen=True, kw_only=True)
class Broyden:
    """z ← z − H g with g = F(z) − z and H the good-Broyden estimate of (∂g/∂z)^{−1}.

    When the `depth` factors are used up, or ‖g‖ grows by more than `growth`, the unknown restarts
    from H = −damping · I, which is a damped Picard step.

    Args:
        depth: Number of rank-one factors kept, ≥ 1.
        damping: Scale of the initial H, in (0, 1].
        growth: Restart when ‖g‖ exceeds `growth` times the last one, ≥ 1.

    Source: Broyden 1965, Math. Comp. 19; limited memory as in Bai et al. 2019, arXiv 1909.01377.
    """

    kind: Literal["broyden"] = "broyden"
    depth: int = 12
    damping: float = 0.8
    growth: float = 2.0

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth: expected an integer >= 1, got {self.depth}")
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping: expected a number in (0, 1], got {self.damping}")
        if self.growth < 1:
            raise ValueError(f"growth: expected a number >= 1, got {self.growth}")

    def init(self, z: Tensor) -> BroydenMemory:
        """No factors."""
        factors = z.new_zeros(*z.shape[:-1], self.depth, z.shape[-1])
        age = torch.zeros(z.shape[:-1], dtype=torch.int64, device=z.device)
        return BroydenMemory(factors, factors, torch.zeros_like(z), torch.zeros_like(z), age)

    def step(self, z: Tensor, fz: Tensor, memory: BroydenMemory) -> tuple[Tensor, BroydenMemory]:
        """Return the quasi-Newton iterate."""
        g = fz.to(z.dtype) - z
        # "Not at most", so that a history that is not finite is forgotten as well.
        grew = ~(g.norm(dim=-1) <= self.growth * memory.last_g.norm(dim=-1))
        restart = (memory.age > 0) & (grew | (memory.age > self.depth))
        age = torch.where(restart, 0, memory.age)
        kept = (age > 0)[..., None, None]
        u, v = torch.where(kept, memory.u, 0), torch.where(kept, memory.v, 0)
        # The step that was taken, which need not be the one that was proposed.
        delta_z = torch.where(age[..., None] > 0, z - memory.last_z, 0)
        delta_g = torch.where(age[..., None] > 0, g - memory.last_g, 0)
        # H⁺ = H + (s − H y) sᵀH / (sᵀH y)
        h_y = self._apply(u, v, delta_g)
        s_h = self._apply(v, u, delta_z)
        bottom = (s_h * delta_g).sum(-1, keepdim=True)
        usable = bottom.abs() > torch.finfo(z.dtype).tiny
        new_u = torch.where(usable, (delta_z - h_y) / torch.where(usable, bottom, 1), 0)
        slot = (age - 1).clamp(min=0)[..., None, None].expand(*z.shape[:-1], 1, z.shape[-1])
        first = (age == 0)[..., None]
        u = u.scatter(-2, slot, torch.where(first, 0, new_u)[..., None, :])
        v = v.scatter(-2, slot, torch.where(first, 0, s_h)[..., None, :])
        return z - self._apply(u, v, g), BroydenMemory(u, v, z, g, age + 1)

    def _apply(self, u: Tensor, v: Tensor, x: Tensor) -> Tensor:
        return -self.damping * x + (u.mT @ (v @ x[..., None]))[..., 0]
