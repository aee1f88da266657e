"""S4: one state-space model a channel, its matrix diagonal plus low rank, started from HiPPO.

    ḣ = (diag(λ) − P P*) h + B u,   y = 2 Re(C h) + D u,   step exp(log_dt) of each channel

λ = −exp(log_A_real) + i A_imag, P and B are shared by the channels (as the authors' code does by
default). Both views are in `equilm/ops/dplr.py`, HiPPO in `equilm/ops/hippo.py`. Read `s6.py` next.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from equilm.nn.state_space import StateSpace, StateSpaceConfig, log_uniform, wide
from equilm.ops.dplr import System, dplr_ssm, with_conjugates
from equilm.ops.hippo import normal_plus_low_rank


@dataclass(frozen=True, kw_only=True)
class S4Config(StateSpaceConfig):
    """Sizes of an S4 mixer: those of `StateSpaceConfig`. N / 2 conjugate pairs are kept."""

    kind: Literal["s4"] = "s4"


class S4(StateSpace):
    """Structured state space, by the bilinear rule.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether the projections in and out carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Source: Gu et al. 2021, arXiv 2111.00396; the sign of P P* from Goel et al. 2022, 2202.09729.
    """

    def __init__(
        self, config: S4Config, width: int, *, weight_norm: bool = False, dropout: float = 0.0
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
        self.log_A_real = nn.Parameter(torch.empty(pairs))
        self.A_imag = nn.Parameter(torch.empty(pairs))
        self.P = nn.Parameter(torch.empty(pairs, 2))
        self.B = nn.Parameter(torch.empty(pairs, 2))
        self.C = nn.Parameter(torch.empty(inner, pairs, 2))

    def initialise_own(self, generator: torch.Generator) -> None:
        """Set λ, P, B to those of HiPPO-LegS, steps log-uniform, C and D normal."""
        hippo = normal_plus_low_rank(self.config.state_size)
        self.log_A_real.copy_(torch.log(-hippo.eigenvalues_N.real))
        self.A_imag.copy_(hippo.eigenvalues_N.imag)
        self.P.copy_(torch.view_as_real(hippo.p_N))
        self.B.copy_(torch.view_as_real(hippo.b_N))
        self.log_dt.copy_(log_uniform(self.log_dt.shape, *self.config.step_range, generator))
        self.C.copy_(torch.randn(self.C.shape, generator=generator) * math.sqrt(0.5))
        self.D.copy_(torch.randn(self.inner, generator=generator))

    def system(self) -> System:
        """Return the continuous system."""
        log_dt_I, log_real_N, imag_N = wide(self.log_dt, self.log_A_real, self.A_imag)
        rate_N = torch.complex(-log_real_N.exp(), imag_N)
        p_N, b_N, c_IN = (torch.view_as_complex(part) for part in wide(self.P, self.B, self.C))
        step_I = log_dt_I.exp() * self.config.step_scale
        rate_N, p_N, b_N, c_IN = with_conjugates(rate_N, p_N, b_N, c_IN)
        return System(rate_N, p_N, b_N, c_IN, step_I)

    def ssm(
        self, u_BTI: Tensor, state_BX: Tensor | None, valid_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `StateSpace`."""
        before_BIN = None if state_BX is None else with_conjugates(state_BX)[0]
        y_BTI, last_BIN = dplr_ssm(u_BTI, self.system(), before_BIN, valid_B)
        return y_BTI, last_BIN[..., : self.config.state_size // 2]

    def ssm_flops(self) -> float:
        """See `StateSpace`: half of a complex matrix by a vector, inputs, outputs."""
        size = self.config.state_size
        return self.inner * (8.0 * size * size / 2 + 4.0 * size)
