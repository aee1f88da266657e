"""S5: one diagonal state-space model for all channels at once, by a parallel scan.

    ḣ = Λ h + B u,   y = 2 Re(C h) + D u,   steps exp(log_step) of each eigenvalue

The scan is `equilm/ops/recurrence.py`. Read `s4.py` next.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilm.nn.state_space import StateSpace, StateSpaceConfig, log_uniform, wide
from equilm.ops.diagonal import DISCRETISATIONS
from equilm.ops.hippo import normal_plus_low_rank
from equilm.ops.recurrence import recurrence, within


@dataclass(frozen=True, kw_only=True)
class S5Config(StateSpaceConfig):
    """Sizes of an S5 mixer, beside those of `StateSpaceConfig`.

    Args:
        state_size: N, even; N / 2 conjugate pairs are kept.
        blocks: J, copies of HiPPO of size N / J that A starts from.
        discretisation: "zoh" or "bilinear".
    """

    kind: Literal["s5"] = "s5"
    state_size: int = 256
    blocks: int = 8
    discretisation: Literal["zoh", "bilinear"] = "zoh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks < 1 or self.state_size % (2 * self.blocks):
            raise ValueError(
                f"blocks: expected a divisor of state_size / 2 = {self.state_size // 2}, "
                f"got {self.blocks}"
            )


class S5(StateSpace):
    """Simplified state space: many inputs, many outputs, one state.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether the projections in and out carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Source: Smith et al. 2023, arXiv 2208.04933.
    """

    def __init__(
        self, config: S5Config, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        inner, pairs = config.expand * width, config.state_size // 2
        super().__init__(
            (pairs,), inner, width, gated=config.gated, weight_norm=weight_norm, dropout=dropout
        )
        self.config = config
        self.log_step = nn.Parameter(torch.empty(pairs))
        self.Lambda_re = nn.Parameter(torch.empty(pairs))
        self.Lambda_im = nn.Parameter(torch.empty(pairs))
        self.B = nn.Parameter(torch.empty(pairs, inner, 2))
        self.C = nn.Parameter(torch.empty(inner, pairs, 2))

    def initialise_own(self, generator: torch.Generator) -> None:
        """Set Λ to J copies of HiPPO's normal part; B and C normal, turned into its eigenbasis."""
        config, (pairs, inner, _) = self.config, self.B.shape
        hippo = normal_plus_low_rank(config.state_size // config.blocks)
        self.log_step.copy_(log_uniform(self.log_step.shape, *config.step_range, generator))
        self.Lambda_re.copy_(hippo.eigenvalues_N.real.repeat(config.blocks))
        self.Lambda_im.copy_(hippo.eigenvalues_N.imag.repeat(config.blocks))
        basis_MN = torch.block_diag(*[hippo.basis_MN] * config.blocks)
        b_MI = torch.randn(2 * pairs, inner, generator=generator) / math.sqrt(inner)
        c_IM = torch.randn(inner, 2 * pairs, generator=generator) / math.sqrt(2 * pairs)
        self.B.copy_(torch.view_as_real(basis_MN.mH @ b_MI.to(basis_MN.dtype)))
        self.C.copy_(torch.view_as_real(c_IM.to(basis_MN.dtype) @ basis_MN))
        self.D.copy_(torch.randn(inner, generator=generator))

    def ssm(
        self, u_BTI: Tensor, state_BX: Tensor | None, valid_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `StateSpace`."""
        log_step_N, re_N, im_N = wide(self.log_step, self.Lambda_re, self.Lambda_im)
        step_N = log_step_N.exp() * self.config.step_scale
        # As published, no eigenvalue leaves the left half plane.
        rate_N = torch.complex(re_N.clamp(max=-1e-4), im_N)
        log_decay_N, gain_N = DISCRETISATIONS[self.config.discretisation](rate_N, step_N)
        b_re_NI, b_im_NI = wide(*self.B.unbind(-1))
        inputs_BTN = gain_N * torch.complex(F.linear(u_BTI, b_re_NI), F.linear(u_BTI, b_im_NI))
        decay_BTN, inputs_BTN = within(log_decay_N.exp()[None, None], inputs_BTN, valid_B)
        h_BTN, last_BN = recurrence(decay_BTN, inputs_BTN, state_BX)
        c_re_IN, c_im_IN = wide(*self.C.unbind(-1))
        return 2 * (F.linear(h_BTN.real, c_re_IN) - F.linear(h_BTN.imag, c_im_IN)), last_BN

    def ssm_flops(self) -> float:
        """See `StateSpace`: two real maps of B and of C, a complex step."""
        return self.config.state_size / 2 * (8.0 * self.inner + 8.0 + 6.0)
