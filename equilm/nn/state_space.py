"""What time-invariant state-space mixers share: a projection in, the model, a GELU, one out.

    u = W_in x + inject,   y = GELU(ssm(u) + D u),   W_out y

With a gate, [u | g] = W_in x + inject and y is multiplied by SiLU(g). Read `s4d.py` next.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilm.nn.linear import Linear, VariationalDropout
from equilm.nn.mixer import Mixer


class StateSpaceState(NamedTuple):
    """The hidden state as real and imaginary parts, in float32."""

    hidden_BX2: Tensor


@dataclass(frozen=True, kw_only=True)
class StateSpaceConfig:
    """Sizes that all these mixers have; the defaults are the published ones.

    Args:
        expand: I / D, channels a unit of model width.
        state_size: N, even.
        step_range: Least and largest step at the start.
        step_scale: Multiplies every step: 2 for a signal sampled half as often as in training.
        gated: Whether a gate multiplies the output.
    """

    expand: int = 1
    state_size: int = 64
    step_range: tuple[float, float] = (1e-3, 1e-1)
    step_scale: float = 1.0
    gated: bool = False

    def __post_init__(self) -> None:
        if self.expand < 1:
            raise ValueError(f"expand: expected an integer >= 1, got {self.expand}")
        if self.state_size < 2 or self.state_size % 2:
            raise ValueError(f"state_size: expected an even integer >= 2, got {self.state_size}")
        if not 0 < self.step_range[0] < self.step_range[1]:
            raise ValueError(f"step_range: expected 0 < least < largest, got {self.step_range}")
        if not self.step_scale > 0:
            raise ValueError(f"step_scale: expected a number > 0, got {self.step_scale}")


class StateSpace(Mixer):
    """A linear system between two projections.

    Args:
        shape: Complex numbers of the hidden state of a row.
        inner: I, channels that go into the system and come out of it.
        width: D.
        gated: Whether a gate multiplies the output.
        weight_norm: Whether the projections in and out carry weight norm.
        dropout: Rate of the variational dropout on the output.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        inner: int,
        width: int,
        *,
        gated: bool,
        weight_norm: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.shape, self.inner, self.width = shape, inner, width
        self.inject_width = 2 * inner if gated else inner
        self.in_proj = Linear(width, self.inject_width, weight_norm=weight_norm)
        self.D = nn.Parameter(torch.empty(inner))
        self.out_proj = Linear(inner, width, weight_norm=weight_norm)
        self.dropout = VariationalDropout(dropout)

    @abstractmethod
    def ssm(
        self, u_BTI: Tensor, state_BX: Tensor | None, valid_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return y_BTI and the complex state after the tokens that count; `None` means zeros."""

    @abstractmethod
    def ssm_flops(self) -> float:
        """Return the operations of one token of `ssm` as a recurrence."""

    def init_state(self, batch: int, capacity: int) -> StateSpaceState:
        """Zeros; the state does not grow with `capacity`."""
        dtype = torch.promote_types(self.D.dtype, torch.float32)
        return StateSpaceState(self.D.new_zeros(batch, *self.shape, 2, dtype=dtype))

    def forward(
        self,
        x_BTD: Tensor,
        state: StateSpaceState | None = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
    ) -> tuple[Tensor, StateSpaceState]:
        """See `Mixer`."""
        projected_BTE = self.in_proj(x_BTD)
        if inject_BTE is not None:
            projected_BTE = projected_BTE + inject_BTE
        u_BTI, *gate = projected_BTE.split(self.inner, dim=-1)
        before_BX = None if state is None else torch.view_as_complex(state.hidden_BX2)
        # Autocast would compute the state in half precision.
        with torch.autocast(u_BTI.device.type, enabled=False):
            u_BTI = u_BTI.to(torch.promote_types(self.D.dtype, torch.float32))
            y_BTI, last_BX = self.ssm(u_BTI, before_BX, valid_B)
        y_BTI = F.gelu(y_BTI + self.D * u_BTI)
        if gate:
            y_BTI = y_BTI * F.silu(gate[0])
        y_BTD = self.dropout(self.out_proj(y_BTI))
        return y_BTD, StateSpaceState(torch.view_as_real(last_BX))

    def flops_per_token(self, length: int) -> float:
        """The projections, and the system as a recurrence."""
        projections = self.width * self.inject_width + self.inner * self.width
        return 2.0 * projections + self.ssm_flops()


def wide(*parameters: Tensor) -> list[Tensor]:
    """Return parameters in float32 or wider: complex numbers come in no half precision."""
    return [part.float() if part.dtype.itemsize < 4 else part for part in parameters]


def log_uniform(shape: torch.Size, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Return logarithms drawn evenly between those of `low` and `high`."""
    low, high = float(torch.log(torch.tensor(low))), float(torch.log(torch.tensor(high)))
    return low + (high - low) * torch.rand(shape, generator=generator)
