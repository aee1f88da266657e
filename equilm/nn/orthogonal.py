"""An orthogonal recurrent network: the hidden state is turned, never stretched.

    h_t = modReLU(Q h_{t−1} + u_t),   Q = exp(S − Sᵀ),   modReLU(v) = sign(v) max(|v| + b, 0)

Read `qrnn.py` next.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilm.nn.linear import Linear, VariationalDropout
from equilm.nn.mixer import Mixer


@dataclass(frozen=True, kw_only=True)
class OrthogonalConfig:
    """Sizes of an orthogonal mixer.

    Args:
        expand: I / D, width of the hidden state.
    """

    kind: Literal["orthogonal"] = "orthogonal"
    expand: int = 1

    def __post_init__(self) -> None:
        if self.expand < 1:
            raise ValueError(f"expand: expected an integer >= 1, got {self.expand}")


class OrthogonalState(NamedTuple):
    """The hidden state, in float32."""

    hidden_BI: Tensor


class Orthogonal(Mixer):
    """u = W_in x + inject, the recurrence, W_out h.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether the projections in and out carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Source: Lezcano-Casado and Martínez-Rubio 2019, arXiv 1901.08428; modReLU: 1511.06464.
    """

    def __init__(
        self,
        config: OrthogonalConfig,
        width: int,
        *,
        weight_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.width, self.inner = width, config.expand * width
        self.inject_width = self.inner
        self.in_proj = Linear(width, self.inner, weight_norm=weight_norm)
        self.skew = nn.Parameter(torch.empty(self.inner, self.inner))
        self.bias = nn.Parameter(torch.empty(self.inner))
        self.out_proj = Linear(self.inner, width, weight_norm=weight_norm)
        self.dropout = VariationalDropout(dropout)

    def initialise_own(self, generator: torch.Generator) -> None:
        """Turn neighbouring pairs by angles drawn evenly (Henaff's start), biases 0."""
        angles = math.pi * (2 * torch.rand(self.inner // 2, generator=generator) - 1)
        even = torch.arange(0, 2 * (self.inner // 2), 2)
        self.skew.zero_()
        self.skew[even, even + 1] = angles.to(self.skew)
        self.bias.zero_()

    def rotation(self) -> Tensor:
        """Return Q (I, I)."""
        wide = torch.promote_types(self.skew.dtype, torch.float32)
        return torch.linalg.matrix_exp((self.skew - self.skew.mT).to(wide))

    def init_state(self, batch: int, capacity: int) -> OrthogonalState:
        """Zeros; the state does not grow with `capacity`."""
        dtype = torch.promote_types(self.skew.dtype, torch.float32)
        return OrthogonalState(self.skew.new_zeros(batch, self.inner, dtype=dtype))

    def forward(
        self,
        x_BTD: Tensor,
        state: OrthogonalState | None = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
    ) -> tuple[Tensor, OrthogonalState]:
        """See `Mixer`."""
        u_BTI = self.in_proj(x_BTD)
        if inject_BTE is not None:
            u_BTI = u_BTI + inject_BTE
        (hidden_BI,) = state if state is not None else self.init_state(len(x_BTD), 0)
        h_TBI = []
        # Autocast would carry the state in half precision.
        with torch.autocast(u_BTI.device.type, enabled=False):
            rotation_II = self.rotation()
            for t, u_BI in enumerate(u_BTI.to(hidden_BI.dtype).unbind(1)):
                v_BI = torch.addmm(u_BI, hidden_BI, rotation_II.mT)
                next_BI = v_BI.sign() * F.relu(v_BI.abs() + self.bias)
                h_TBI.append(next_BI)
                counts = None if valid_B is None else (t < valid_B)[:, None]
                hidden_BI = next_BI if counts is None else next_BI.where(counts, hidden_BI)
        y_BTD = self.out_proj(torch.stack(h_TBI, dim=1))
        return self.dropout(y_BTD), OrthogonalState(hidden_BI)

    def flops_per_token(self, length: int) -> float:
        """The projections, and the turn."""
        return 2.0 * self.inner * (2 * self.width + self.inner)
