"""LRU: a complex diagonal linear recurrence between two dense maps, stable by its parameters.

    λ = exp(−exp(nu_log) + i exp(theta_log)),   h_t = λ h_{t−1} + exp(gamma_log) B u_t
    y_t = Re(C h_t) + D u_t,   u = W_in x + inject

The scan is `equilm/ops/recurrence.py`. Read `s5.py` next.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilm.nn.linear import Linear, VariationalDropout
from equilm.nn.mixer import Mixer
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


class LRUState(NamedTuple):
    """The hidden state as real and imaginary parts, in float32."""

    hidden_BN2: Tensor


class LRU(Mixer):
    """Linear recurrent unit, with a GELU behind it.

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
        super().__init__()
        self.config, self.width, self.inner = config, width, config.expand * width
        self.inject_width, size = self.inner, config.state_size
        self.in_proj = Linear(width, self.inner, weight_norm=weight_norm)
        self.nu_log = nn.Parameter(torch.empty(size))
        self.theta_log = nn.Parameter(torch.empty(size))
        self.gamma_log = nn.Parameter(torch.empty(size))
        self.B_re = nn.Parameter(torch.empty(size, self.inner))
        self.B_im = nn.Parameter(torch.empty(size, self.inner))
        self.C_re = nn.Parameter(torch.empty(self.inner, size))
        self.C_im = nn.Parameter(torch.empty(self.inner, size))
        self.D = nn.Parameter(torch.empty(self.inner))
        self.out_proj = Linear(self.inner, width, weight_norm=weight_norm)
        self.dropout = VariationalDropout(dropout)

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

    def init_state(self, batch: int, capacity: int) -> LRUState:
        """Zeros; the state does not grow with `capacity`."""
        dtype = torch.promote_types(self.nu_log.dtype, torch.float32)
        return LRUState(self.nu_log.new_zeros(batch, self.config.state_size, 2, dtype=dtype))

    def forward(
        self,
        x_BTD: Tensor,
        state: LRUState | None = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
    ) -> tuple[Tensor, LRUState]:
        """See `Mixer`."""
        u_BTI = self.in_proj(x_BTD)
        if inject_BTE is not None:
            u_BTI = u_BTI + inject_BTE
        (before_BN2,) = state if state is not None else self.init_state(len(x_BTD), 0)
        with torch.autocast(u_BTI.device.type, enabled=False):
            y_BTI, hidden_BN2 = self._scan(u_BTI.to(before_BN2.dtype), before_BN2, valid_B)
        return self.dropout(self.out_proj(F.gelu(y_BTI))), LRUState(hidden_BN2)

    def _scan(
        self, u_BTI: Tensor, before_BN2: Tensor, valid_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        gain_N = self.gamma_log.exp()
        decay_11N = torch.exp(torch.complex(-self.nu_log.exp(), self.theta_log.exp()))[None, None]
        # Two real products: B u for real u.
        input_BTN = gain_N * torch.complex(F.linear(u_BTI, self.B_re), F.linear(u_BTI, self.B_im))
        decay_BTN, input_BTN = within(decay_11N, input_BTN, valid_B)
        h_BTN, last_BN = recurrence(decay_BTN, input_BTN, torch.view_as_complex(before_BN2))
        y_BTI = F.linear(h_BTN.real, self.C_re) - F.linear(h_BTN.imag, self.C_im)
        return y_BTI + self.D * u_BTI, torch.view_as_real(last_BN)

    def flops_per_token(self, length: int) -> float:
        """Projections, the complex maps B and C, and one complex step."""
        size = self.config.state_size
        return 4.0 * self.inner * self.width + 8.0 * self.inner * size + 8.0 * size
