"""DSS: one diagonal state-space model a channel, without an input matrix (its form DSS-exp).

    ḣ = Λ h + u,   y = Re(W h) + D u,   Λ = −exp(Lambda_re) + i Lambda_im,   step exp(log_dt)

Zero-order hold alone, eigenvalues from HiPPO. DSS-softmax divides by a sum over the length of the
sequence, so it has no recurrence that keeps the law of chunks, and is not here. Read `s5.py` next.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from equilm.nn.state_space import StateSpace, StateSpaceConfig, log_uniform, wide
from equilm.ops.diagonal import diagonal_ssm, zoh
from equilm.ops.hippo import normal_plus_low_rank


@dataclass(frozen=True, kw_only=True)
class DSSConfig(StateSpaceConfig):
    """Sizes of a DSS mixer: those of `StateSpaceConfig`. N is complex numbers of a channel."""

    kind: Literal["dss"] = "dss"


class DSS(StateSpace):
    """Diagonal state space.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether the projections in and out carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Source: Gupta et al. 2022, arXiv 2203.14343; eigenvalues of one sign, shared at the start.
    """

    def __init__(
        self, config: DSSConfig, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        inner, size = config.expand * width, config.state_size
        super().__init__(
            (inner, size),
            inner,
            width,
            gated=config.gated,
            weight_norm=weight_norm,
            dropout=dropout,
        )
        self.config = config
        self.log_dt = nn.Parameter(torch.empty(inner))
        self.Lambda_re = nn.Parameter(torch.empty(size))
        self.Lambda_im = nn.Parameter(torch.empty(size))
        self.W = nn.Parameter(torch.empty(inner, size, 2))

    def initialise_own(self, generator: torch.Generator) -> None:
        """Set Λ to HiPPO's with positive angles, steps log-uniform, W and D normal."""
        self.log_dt.copy_(log_uniform(self.log_dt.shape, *self.config.step_range, generator))
        eigenvalues_N = normal_plus_low_rank(2 * self.config.state_size).eigenvalues_N
        self.Lambda_re.copy_(torch.log(-eigenvalues_N.real))
        self.Lambda_im.copy_(eigenvalues_N.imag)
        self.W.copy_(torch.randn(self.W.shape, generator=generator))
        self.D.copy_(torch.randn(self.inner, generator=generator))

    def ssm(
        self, u_BTI: Tensor, state_BX: Tensor | None, valid_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `StateSpace`."""
        log_dt_I, re_N, im_N, w_IN2 = wide(self.log_dt, self.Lambda_re, self.Lambda_im, self.W)
        step_I1 = log_dt_I.exp()[:, None] * self.config.step_scale
        rate_N = torch.complex(-re_N.exp(), im_N)
        log_decay_IN, b_IN = zoh(rate_N, step_I1)
        c_IN = torch.view_as_complex(w_IN2)
        return diagonal_ssm(u_BTI, log_decay_IN, b_IN, c_IN, state_BX, valid_B)

    def ssm_flops(self) -> float:
        """See `StateSpace`: a complex step, a real input, the real part of a product."""
        return self.inner * self.config.state_size * (8.0 + 4.0 + 4.0)
