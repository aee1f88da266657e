"""Damped fixed-point iteration, the default. Read `iterate.py` next."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Picard:
    """z ← z + damping · (F(z) − z).

    Args:
        damping: In (0, 1]; 1 is the plain iteration. 0.8 converges on trained state trackers where
            1 does not (local spectral radii slightly above 1).

    Source: arXiv 2502.07827, section 3; the damped form as in its sequential evaluation.
    """

    kind: Literal["picard"] = "picard"
    damping: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping: expected a number in (0, 1], got {self.damping}")

    def init(self, z: Tensor) -> tuple[()]:
        """No memory."""
        return ()

    def step(self, z: Tensor, fz: Tensor, memory: tuple[()]) -> tuple[Tensor, tuple[()]]:
        """Return the damped iterate."""
        return torch.lerp(z, fz.to(z.dtype), self.damping), memory
