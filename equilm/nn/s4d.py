"""S4D: one diagonal state-space model a channel, in conjugate pairs.

    ḣ = A h + u,   y = 2 Re(C h) + D u,   A = −exp(log_A_real) + i A_imag,   step exp(log_dt)

Both views, recurrence and convolution, are in `equilm/ops/diagonal.py`. Read `dss.py` and
`liquid.py` next.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from equilm.nn.state_space import StateSpace, StateSpaceConfig, log_uniform, wide
from equilm.ops.diagonal import DISCRETISATIONS, diagonal_ssm
from equilm.ops.hippo import normal_plus_low_rank


@dataclass(frozen=True, kw_only=True)
class S4DConfig(StateSpaceConfig):
    """Sizes of an S4D mixer, beside those of `StateSpaceConfig`.

    Args:
        state_size: N, even; N / 2 conjugate pairs are kept.
        init: Where A starts: "lin" −½ + iπn, "inv" −½ + i(N/π)(N/(2n+1) − 1), "real" −(n+1),
            "legs" the normal part of HiPPO-LegS.
        discretisation: "zoh" or "bilinear".
    """

    kind: Literal["s4d"] = "s4d"
    init: Literal["lin", "inv", "real", "legs"] = "lin"
    discretisation: Literal["zoh", "bilinear"] = "zoh"


class S4D(StateSpace):
    """Diagonal S4.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether the projections in and out carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Source: Gu et al. 2022, arXiv 2206.11893.
    """

    def __init__(
        self, config: S4DConfig, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        inner, pairs = config.expand * width, config.state_size // 2
        super().__init__(
            (inner, pairs),
            inner,
            width,
            gated=config.gated,
            weight_norm=weight_norm,
            dropout=dropout,
        )
        self.config = config
        self.log_dt = nn.Parameter(torch.empty(inner))
        self.log_A_real = nn.Parameter(torch.empty(inner, pairs))
        self.A_imag = nn.Parameter(torch.empty(inner, pairs))
        self.C = nn.Parameter(torch.empty(inner, pairs, 2))

    def initialise_own(self, generator: torch.Generator) -> None:
        """Set A as `init` says, steps log-uniform, C and D normal."""
        self.log_dt.copy_(log_uniform(self.log_dt.shape, *self.config.step_range, generator))
        eigenvalues_N = initial_eigenvalues(self.config.init, self.config.state_size)
        self.log_A_real.copy_(torch.log(-eigenvalues_N.real))
        self.A_imag.copy_(eigenvalues_N.imag)
        self.C.copy_(torch.randn(self.C.shape, generator=generator) * math.sqrt(0.5))
        self.D.copy_(torch.randn(self.inner, generator=generator))

    def ssm(
        self, u_BTI: Tensor, state_BX: Tensor | None, valid_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `StateSpace`."""
        log_dt_I, log_real_IN, imag_IN, c_IN2 = wide(
            self.log_dt, self.log_A_real, self.A_imag, self.C
        )
        step_I1 = log_dt_I.exp()[:, None] * self.config.step_scale
        rate_IN = torch.complex(-log_real_IN.exp(), imag_IN)
        log_decay_IN, b_IN = DISCRETISATIONS[self.config.discretisation](rate_IN, step_I1)
        c_IN = 2 * torch.view_as_complex(c_IN2)
        return diagonal_ssm(u_BTI, log_decay_IN, b_IN, c_IN, state_BX, valid_B)

    def ssm_flops(self) -> float:
        """See `StateSpace`: a complex step, a real input, the real part of a product."""
        return self.inner * self.config.state_size / 2 * (8.0 + 4.0 + 4.0)


def initial_eigenvalues(init: str, size: int) -> Tensor:
    """Return N / 2 complex numbers in float64, one of each conjugate pair.

    Source: arXiv 2206.11893, section 4.
    """
    n_N = torch.arange(size // 2, dtype=torch.float64)
    half_N = torch.full_like(n_N, -0.5)
    if init == "legs":
        return normal_plus_low_rank(size).eigenvalues_N
    if init == "real":
        return torch.complex(-(n_N + 1), torch.zeros_like(n_N))
    if init == "lin":
        return torch.complex(half_N, math.pi * n_N)
    return torch.complex(half_N, size / math.pi * (size / (2 * n_N + 1) - 1))
