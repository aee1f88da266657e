"""Anderson acceleration, safeguarded. Read `iterate.py` next."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class AndersonMemory(NamedTuple):
    """The last `depth` differences, newest anywhere (a ring), and what the safeguard needs."""

    delta_z: Tensor  # (..., depth, N)
    delta_g: Tensor  # (..., depth, N), g = F(z) − z
    last_z: Tensor  # (..., N)
    last_g: Tensor  # (..., N)
    age: Tensor  # (...), int64: steps since the last restart


@dataclass(frozen=True, kw_only=True)
class Anderson:
    """z ← z + β g − (ΔZ + β ΔG) γ with γ = argmin ‖g − ΔG γ‖² + ridge ‖ΔG‖² ‖γ‖².

    An unknown whose residual grows by more than `growth` forgets its history and takes a damped
    Picard step.

    Args:
        depth: Number of differences kept, ≥ 1.
        damping: β in (0, 1].
        ridge: Relative Tikhonov weight ≥ 0.
        growth: Restart when ‖g‖ exceeds `growth` times the last one, ≥ 1.

    Source: Walker and Ni 2011, SIAM J. Numer. Anal. 49(4), type II.
    """

    kind: Literal["anderson"] = "anderson"
    depth: int = 5
    damping: float = 0.8
    ridge: float = 1e-8
    growth: float = 2.0

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth: expected an integer >= 1, got {self.depth}")
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping: expected a number in (0, 1], got {self.damping}")
        if self.ridge < 0:
            raise ValueError(f"ridge: expected a number >= 0, got {self.ridge}")
        if self.growth < 1:
            raise ValueError(f"growth: expected a number >= 1, got {self.growth}")

    def init(self, z: Tensor) -> AndersonMemory:
        """An empty history."""
        history = z.new_zeros(*z.shape[:-1], self.depth, z.shape[-1])
        age = torch.zeros(z.shape[:-1], dtype=torch.int64, device=z.device)
        return AndersonMemory(history, history, torch.zeros_like(z), torch.zeros_like(z), age)

    def step(self, z: Tensor, fz: Tensor, memory: AndersonMemory) -> tuple[Tensor, AndersonMemory]:
        """Return the accelerated iterate; unused history slots are zero and drop out of γ."""
        g = fz.to(z.dtype) - z
        # "Not at most", so that a history that is not finite is forgotten as well.
        grew = ~(g.norm(dim=-1) <= self.growth * memory.last_g.norm(dim=-1))
        age = torch.where(grew & (memory.age > 0), 0, memory.age)
        kept = (age > 0)[..., None, None]
        slot = ((age - 1) % self.depth)[..., None, None].expand(*z.shape[:-1], 1, z.shape[-1])
        started = (age > 0)[..., None]
        delta_z = torch.where(kept, memory.delta_z, 0).scatter(
            -2, slot, torch.where(started, z - memory.last_z, 0)[..., None, :]
        )
        delta_g = torch.where(kept, memory.delta_g, 0).scatter(
            -2, slot, torch.where(started, g - memory.last_g, 0)[..., None, :]
        )
        gamma = self._mix(delta_g, g)
        z_next = z + self.damping * g - ((delta_z + self.damping * delta_g).mT @ gamma)[..., 0]
        return z_next, AndersonMemory(delta_z, delta_g, z, g, age + 1)

    def _mix(self, delta_g: Tensor, g: Tensor) -> Tensor:
        gram = delta_g @ delta_g.mT
        scale = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        eye = torch.eye(self.depth, dtype=g.dtype, device=g.device)
        ridge = scale * self.ridge + torch.finfo(g.dtype).tiny
        # An empty slot has a zero row: the ridge alone keeps its equation solvable, with γ = 0.
        empty = torch.diag_embed((gram.diagonal(dim1=-2, dim2=-1) == 0).to(g.dtype))
        gamma, _ = torch.linalg.solve_ex(gram + ridge * eye + empty, delta_g @ g[..., None])
        return torch.nan_to_num(gamma, posinf=0.0, neginf=0.0)
