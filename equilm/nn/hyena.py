"""Hyena of order 2: two gates around a long convolution whose filter is a function of position.

    [p | k | v] = conv(W_in x + inject),   u = k · v,   y = p · (K ∗ u + D u),   W_out y

K has L taps (`implicit_filter.py`): the last L inputs are all that an output sees, and what is kept
for decoding. The arithmetic is `equilm/ops/long_conv.py`. Read `sru.py` next.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilm.nn.implicit_filter import ImplicitFilter
from equilm.nn.linear import DepthwiseTaps, Linear, VariationalDropout
from equilm.nn.mixer import Mixer
from equilm.ops.conv import conv, last
from equilm.ops.long_conv import long_conv


@dataclass(frozen=True, kw_only=True)
class HyenaConfig:
    """Sizes of a Hyena mixer; the defaults are the published ones.

    Args:
        filter_length: L, taps of the long filter; as published the context of training.
        conv_width: W, taps of the short convolution.
        features: Of a position, odd, ≥ 3.
        hidden: Width of the network that makes the filter.
        frequency: Of its sines at the start.
    """

    kind: Literal["hyena"] = "hyena"
    filter_length: int = 1024
    conv_width: int = 3
    features: int = 33
    hidden: int = 64
    frequency: float = 14.0

    def __post_init__(self) -> None:
        for name in ("filter_length", "conv_width", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")
        if self.features < 3 or self.features % 2 == 0:
            raise ValueError(f"features: expected an odd integer >= 3, got {self.features}")
        if not self.frequency > 0:
            raise ValueError(f"frequency: expected a number > 0, got {self.frequency}")


class HyenaState(NamedTuple):
    """What Hyena carries from token to token, in float32."""

    window_BWC: Tensor  # the last W − 1 inputs of the short convolution
    past_BSI: Tensor  # the last L − 1 inputs of the long one


class Hyena(Mixer):
    """Gated long convolution.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether projections and short taps carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Source: Poli et al. 2023, arXiv 2302.10866.
    """

    def __init__(
        self, config: HyenaConfig, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.config, self.width, self.inject_width = config, width, 3 * width
        self.in_proj = Linear(width, 3 * width, weight_norm=weight_norm)
        self.conv1d = DepthwiseTaps(3 * width, config.conv_width, weight_norm=weight_norm)
        self.filter = ImplicitFilter(
            width, config.filter_length, features=config.features, hidden=config.hidden
        )
        self.D = nn.Parameter(torch.empty(width))
        self.out_proj = Linear(width, width, weight_norm=weight_norm)
        self.dropout = VariationalDropout(dropout)

    def initialise_own(self, generator: torch.Generator) -> None:
        """Set the filter as `ImplicitFilter` does, D normal."""
        self.filter.initialise(self.config.frequency, generator)
        self.D.copy_(torch.randn(self.width, generator=generator))

    def init_state(self, batch: int, capacity: int) -> HyenaState:
        """Zeros; the state does not grow with `capacity`."""
        dtype = torch.promote_types(self.D.dtype, torch.float32)
        return HyenaState(
            self.D.new_zeros(batch, self.config.conv_width - 1, 3 * self.width, dtype=dtype),
            self.D.new_zeros(batch, self.config.filter_length - 1, self.width, dtype=dtype),
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: HyenaState | None = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
    ) -> tuple[Tensor, HyenaState]:
        """See `Mixer`."""
        window_BWC, past_BSI = state if state is not None else (None, None)
        projected_BTE = self.in_proj(x_BTD)
        if inject_BTE is not None:
            projected_BTE = projected_BTE + inject_BTE
        taps_CW = self.conv1d.effective()[:, 0]
        convolved_BTC, window_BWC = conv(
            projected_BTE, taps_CW, self.conv1d.bias, window_BWC, valid_B
        )
        p_BTI, k_BTI, v_BTI = convolved_BTC.split(self.width, dim=-1)
        # Transforms know no half precision of any length.
        with torch.autocast(x_BTD.device.type, enabled=False):
            u_BTI = (k_BTI * v_BTI).to(torch.promote_types(self.D.dtype, torch.float32))
            if valid_B is not None:
                # What is padding may be large, and transforms round by what is largest.
                valid_BT = torch.arange(u_BTI.shape[1], device=valid_B.device) < valid_B[:, None]
                u_BTI = u_BTI.where(valid_BT[..., None], 0)
            y_BTI = long_conv(u_BTI, self.filter.effective(), past_BSI) + self.D * u_BTI
        y_BTD = self.dropout(self.out_proj(p_BTI * y_BTI))
        return y_BTD, HyenaState(window_BWC, self._past(u_BTI, past_BSI, valid_B))

    def _past(self, u_BTI: Tensor, past_BSI: Tensor | None, valid_B: Tensor | None) -> Tensor:
        taps = self.config.filter_length
        if past_BSI is None:
            padded_BSI = F.pad(u_BTI, (0, 0, taps - 1, 0))
        else:
            padded_BSI = torch.cat([past_BSI, u_BTI], dim=1)
        return last(padded_BSI, u_BTI.shape[1], taps, valid_B)

    def flops_per_token(self, length: int) -> float:
        """Projections, both convolutions as sums over their taps, and products."""
        taps = 3 * self.config.conv_width + self.config.filter_length
        return 2.0 * self.width * (3 * self.width + self.width + taps + 3)
