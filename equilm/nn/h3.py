"""H3, "hungry hungry hippos": a product of what just was with what is, remembered, asked by a gate.

    [q | k | v] = W_in x + inject,   u = shift(k) · v,   y = q · (ssm(u) + D u),   W_out y

The shift is a state-space model that only moves inputs on: a convolution with N taps. The other is
diagonal (`diagonal.py`). Read `hyena.py` next.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from equilm.nn.diagonal import Diagonal
from equilm.nn.linear import DepthwiseTaps, Linear, VariationalDropout
from equilm.nn.mixer import Mixer
from equilm.ops.conv import conv
from equilm.ops.diagonal import diagonal_ssm


@dataclass(frozen=True, kw_only=True)
class H3Config:
    """Sizes of an H3 mixer; the defaults are the published ones.

    Args:
        expand: I / D.
        shift_size: W, state of the shift: the taps of a convolution.
        state_size: N of the diagonal model, even; N / 2 conjugate pairs are kept.
        step_range: Least and largest step at the start.
    """

    kind: Literal["h3"] = "h3"
    expand: int = 1
    shift_size: int = 64
    state_size: int = 64
    step_range: tuple[float, float] = (1e-3, 1e-1)

    def __post_init__(self) -> None:
        for name in ("expand", "shift_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")
        if self.state_size < 2 or self.state_size % 2:
            raise ValueError(f"state_size: expected an even integer >= 2, got {self.state_size}")
        if not 0 < self.step_range[0] < self.step_range[1]:
            raise ValueError(f"step_range: expected 0 < least < largest, got {self.step_range}")


class H3State(NamedTuple):
    """What H3 carries from token to token, in float32."""

    window_BWI: Tensor  # the last W − 1 inputs of the shift
    hidden_BIN2: Tensor  # of the diagonal model, real and imaginary parts


class H3(Mixer):
    """Two state-space models joined by products, with heads of one channel.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether projections and taps carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Source: Fu et al. 2022, arXiv 2212.14052.
    """

    def __init__(
        self, config: H3Config, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.config, self.width, self.inner = config, width, config.expand * width
        self.inject_width = 3 * self.inner
        self.in_proj = Linear(width, self.inject_width, weight_norm=weight_norm)
        self.shift = DepthwiseTaps(self.inner, config.shift_size, weight_norm=weight_norm)
        self.system = Diagonal(self.inner, config.state_size)
        self.D = nn.Parameter(torch.empty(self.inner))
        self.out_proj = Linear(self.inner, width, weight_norm=weight_norm)
        self.dropout = VariationalDropout(dropout)

    def initialise_own(self, generator: torch.Generator) -> None:
        """Set the diagonal model as `Diagonal` does, D normal."""
        self.system.initialise(self.config.step_range, generator)
        self.D.copy_(torch.randn(self.inner, generator=generator))

    def init_state(self, batch: int, capacity: int) -> H3State:
        """Zeros; the state does not grow with `capacity`."""
        dtype = torch.promote_types(self.D.dtype, torch.float32)
        pairs = self.config.state_size // 2
        return H3State(
            self.D.new_zeros(batch, self.config.shift_size - 1, self.inner, dtype=dtype),
            self.D.new_zeros(batch, self.inner, pairs, 2, dtype=dtype),
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: H3State | None = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
    ) -> tuple[Tensor, H3State]:
        """See `Mixer`."""
        window_BWI = hidden_BIN = None
        if state is not None:
            window_BWI, hidden_BIN = state[0], torch.view_as_complex(state.hidden_BIN2)
        projected_BTE = self.in_proj(x_BTD)
        if inject_BTE is not None:
            projected_BTE = projected_BTE + inject_BTE
        q_BTI, k_BTI, v_BTI = projected_BTE.split(self.inner, dim=-1)
        taps_IW = self.shift.effective()[:, 0]
        k_BTI, window_BWI = conv(k_BTI, taps_IW, self.shift.bias, window_BWI, valid_B)
        # Autocast would compute the state in half precision.
        with torch.autocast(x_BTD.device.type, enabled=False):
            u_BTI = (k_BTI * v_BTI).to(torch.promote_types(self.D.dtype, torch.float32))
            y_BTI, hidden_BIN = diagonal_ssm(u_BTI, *self.system.discrete(), hidden_BIN, valid_B)
        y_BTD = self.dropout(self.out_proj(q_BTI * (y_BTI + self.D * u_BTI)))
        return y_BTD, H3State(window_BWI, torch.view_as_real(hidden_BIN))

    def flops_per_token(self, length: int) -> float:
        """Projections, the shift, products, and the diagonal model as a recurrence."""
        projections = self.width * self.inject_width + self.inner * self.width
        return 2.0 * (projections + self.inner * (self.config.shift_size + 2)) + self.system.flops()
