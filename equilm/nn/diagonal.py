"""What a diagonal state-space model of each channel learns: rates, steps and output weights.

    ḣ = A h + u,   y = 2 Re(C h),   A = −exp(log_A_real) + i A_imag,   step exp(log_dt)

as in `s4d.py`, for mixers that put such models to another use. Read `h3.py` next.
"""

import math

import torch
from torch import Tensor, nn

from equilm.nn.s4d import initial_eigenvalues
from equilm.nn.state_space import log_uniform, wide
from equilm.ops.diagonal import zoh


class Diagonal(nn.Module):
    """Parameters of the models of I channels, in conjugate pairs.

    Args:
        channels: I.
        state_size: N, even; N / 2 pairs are kept.

    Source: Gu et al. 2022, arXiv 2206.11893.
    """

    def __init__(self, channels: int, state_size: int) -> None:
        super().__init__()
        self.state_size, pairs = state_size, state_size // 2
        self.log_dt = nn.Parameter(torch.empty(channels))
        self.log_A_real = nn.Parameter(torch.empty(channels, pairs))
        self.A_imag = nn.Parameter(torch.empty(channels, pairs))
        self.C = nn.Parameter(torch.empty(channels, pairs, 2))

    def initialise(self, step_range: tuple[float, float], generator: torch.Generator) -> None:
        """Set A to −½ + iπn, steps log-uniform, C normal."""
        self.log_dt.copy_(log_uniform(self.log_dt.shape, *step_range, generator))
        eigenvalues_N = initial_eigenvalues("lin", self.state_size)
        self.log_A_real.copy_(torch.log(-eigenvalues_N.real))
        self.A_imag.copy_(eigenvalues_N.imag)
        self.C.copy_(torch.randn(self.C.shape, generator=generator) * math.sqrt(0.5))

    def discrete(self, *, step_scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logs of the decays, the input and the output weights, complex (I, N / 2).

        Args:
            step_scale: Multiplies every step.
        """
        log_dt_I, log_real_IN, imag_IN, c_IN2 = wide(
            self.log_dt, self.log_A_real, self.A_imag, self.C
        )
        step_I1 = log_dt_I.exp()[:, None] * step_scale
        log_decay_IN, b_IN = zoh(torch.complex(-log_real_IN.exp(), imag_IN), step_I1)
        return log_decay_IN, b_IN, 2 * torch.view_as_complex(c_IN2)

    def flops(self) -> float:
        """Return the operations of a token: a complex step, a real input, a real part."""
        return self.log_dt.numel() * self.state_size / 2 * (8.0 + 4.0 + 4.0)
