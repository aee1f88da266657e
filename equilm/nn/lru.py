"""LRU: a complex diagonal linear recurrence between two dense maps, stable by its parameters.

    λ = exp(−exp(nu_log) + i exp(theta_log)),   h_t = λ h_{t−1} + exp(gamma_log) B u_t
    y_t = Re(C h_t) + D u_t

What stands around it is in `state_space.py`, the scan in `equilm/ops/recurrence.py`. Read
`s5.py` next.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilm.nn.state_space import StateSpace, wide
from equilm.ops.recurrence import recurrence, within


@dataclass(frozen=True, kw_only=True)
class LRUConfig:
    """Sizes of an LRU mixer; the defaults are the published ones.

    Args:
        expand: I / D, width of what goes into the recurrence and comes out of it.
        state_size: N, complex numbers of the hidden state.
        radius: Least and largest |λ| at the start, in (0, 1).
        max_phase: Largest angle of λ at the start.
    """

    kind: Literal["lru"] = "lru"
    expand: int = 1
    state_size: int = 256
    radius: tuple[float, float] = (0.9, 0.999)
    max_phase: float = 2 * math.pi

    def __post_init__(self) -> None:
        for name in ("expand", "state_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")
        low, high = self.radius
        if not 0 < low < high < 1:
            raise ValueError(f"radius: expected 0 < least < largest < 1, got {self.radius}")
        if not self.max_phase > 0:
            raise ValueError(f"max_phase: expected a number > 0, got {self.max_phase}")


class LRU(StateSpace):
    """Linear recurrent unit.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether the projections in and out carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Source: Orvieto et al. 2023, arXiv 2303.06349.
    """

    def __init__(
        self, config: LRUConfig, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        inner, size = config.expand * width, config.state_size
        super().__init__(
            (size,), inner, width, gated=False, weight_norm=weight_norm, dropout=dropout
        )
        self.config = config
        self.nu_log = nn.Parameter(torch.empty(size))
        self.theta_log = nn.Parameter(torch.empty(size))
        self.gamma_log = nn.Parameter(torch.empty(size))
        self.B_re = nn.Parameter(torch.empty(size, inner))
        self.B_im = nn.Parameter(torch.empty(size, inner))
        self.C_re = nn.Parameter(torch.empty(inner, size))
        self.C_im = nn.Parameter(torch.empty(inner, size))

    def initialise_own(self, generator: torch.Generator) -> None:
        """Draw λ uniform on a ring, B and C normal, and γ so that states keep the inputs' size."""
        size, (low, high) = self.config.state_size, self.config.radius
        square_N = low**2 + (high**2 - low**2) * torch.rand(size, generator=generator)
        self.nu_log.copy_(torch.log(-0.5 * torch.log(square_N)))
        angle_N = self.config.max_phase * torch.rand(size, generator=generator)
        self.theta_log.copy_(torch.log(angle_N.clamp(min=1e-8)))
        self.gamma_log.copy_(0.5 * torch.log1p(-square_N))
        for part, fan_in in (
            (self.B_re, 2 * self.inner),
            (self.B_im, 2 * self.inner),
            (self.C_re, size),
            (self.C_im, size),
        ):
            part.copy_(torch.randn(part.shape, generator=generator) / math.sqrt(fan_in))
        self.D.copy_(torch.randn(self.inner, generator=generator))

    def ssm(
        self, u_BTI: Tensor, state_BX: Tensor | None, valid_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `StateSpace`."""
        nu_N, theta_N, gain_N = (
            part.exp() for part in wide(self.nu_log, self.theta_log, self.gamma_log)
        )
        b_re_NI, b_im_NI, c_re_IN, c_im_IN = wide(self.B_re, self.B_im, self.C_re, self.C_im)
        decay_11N = torch.exp(torch.complex(-nu_N, theta_N))[None, None]
        # Two real products: B u for real u.
        input_BTN = gain_N * torch.complex(F.linear(u_BTI, b_re_NI), F.linear(u_BTI, b_im_NI))
        decay_BTN, input_BTN = within(decay_11N, input_BTN, valid_B)
        h_BTN, last_BN = recurrence(decay_BTN, input_BTN, state_BX)
        return F.linear(h_BTN.real, c_re_IN) - F.linear(h_BTN.imag, c_im_IN), last_BN

    def ssm_flops(self) -> float:
        """See `StateSpace`: two real maps of B and of C, a complex step."""
        return self.config.state_size * (8.0 * self.inner + 8.0)
