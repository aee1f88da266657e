"""RG-LRU, the recurrence of Griffin: a real diagonal one whose decay and input are gated.

    [x | g] = W_in x + inject,   x = conv(x),   r, i = σ(W_r x + b_r), σ(W_i x + b_i)
    log a = −8 r softplus(Λ),   h_t = a h_{t−1} + sqrt(1 − a²) (i · x),   y = W_out (h · GELU(g))

W_r and W_i are block-diagonal. The scan is `equilm/ops/recurrence.py`. Read `local.py` next.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilm.nn.linear import DepthwiseTaps, Linear, VariationalDropout, Weight
from equilm.nn.mixer import Mixer
from equilm.ops.conv import conv
from equilm.ops.recurrence import recurrence, within

SHARPNESS = 8.0  # c of the paper: a = σ(Λ)^(c r)


@dataclass(frozen=True, kw_only=True)
class RGLRUConfig:
    """Sizes of an RG-LRU mixer; the defaults are the published ones.

    Args:
        expand: I / D, width of the recurrence.
        heads: H, blocks of the gates' weights, a divisor of I.
        conv_width: W, taps of the convolution.
        radius: Least and largest decay at an open gate at the start, in (0, 1).
    """

    kind: Literal["rglru"] = "rglru"
    expand: int = 1
    heads: int = 8
    conv_width: int = 4
    radius: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        for name in ("expand", "heads", "conv_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")
        low, high = self.radius
        if not 0 < low < high < 1:
            raise ValueError(f"radius: expected 0 < least < largest < 1, got {self.radius}")


class RGLRUState(NamedTuple):
    """What RG-LRU carries from token to token, in float32."""

    window_BWC: Tensor  # the last W − 1 inputs of the convolution
    hidden_BI: Tensor


class RGLRU(Mixer):
    """Griffin's recurrent block: a convolution and the RG-LRU beside a GELU gate.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether projections, taps and gates carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Raises:
        ValueError: If the heads do not divide the inner width.

    Source: De et al. 2024, arXiv 2402.19427.
    """

    takes_starts = True

    def __init__(
        self, config: RGLRUConfig, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.config, self.width, self.inner = config, width, config.expand * width
        if self.inner % config.heads:
            raise ValueError(
                f"mixer.heads: expected a divisor of {self.inner} channels, got {config.heads}"
            )
        self.inject_width = 2 * self.inner
        self.in_proj = Linear(width, self.inject_width, weight_norm=weight_norm)
        self.conv1d = DepthwiseTaps(self.inner, config.conv_width, weight_norm=weight_norm)
        blocks = (self.inner, self.inner // config.heads)
        self.gate_r = Weight(blocks, weight_norm=weight_norm)
        self.gate_i = Weight(blocks, weight_norm=weight_norm)
        self.bias_r = nn.Parameter(torch.empty(self.inner))
        self.bias_i = nn.Parameter(torch.empty(self.inner))
        self.decay = nn.Parameter(torch.empty(self.inner))
        self.out_proj = Linear(self.inner, width, weight_norm=weight_norm)
        self.dropout = VariationalDropout(dropout)

    def initialise_own(self, generator: torch.Generator) -> None:
        """Draw a at an open gate evenly from `radius`; gates start half open."""
        low, high = self.config.radius
        drawn_I = low + (high - low) * torch.rand(self.inner, generator=generator)
        self.decay.copy_(torch.log(torch.expm1(-drawn_I.log() / SHARPNESS)))
        self.bias_r.zero_()
        self.bias_i.zero_()

    def init_state(self, batch: int, capacity: int) -> RGLRUState:
        """Zeros; the state does not grow with `capacity`."""
        dtype = torch.promote_types(self.decay.dtype, torch.float32)
        window_BWC = self.decay.new_zeros(
            batch, self.config.conv_width - 1, self.inner, dtype=dtype
        )
        return RGLRUState(window_BWC, self.decay.new_zeros(batch, self.inner, dtype=dtype))

    def forward(
        self,
        x_BTD: Tensor,
        state: RGLRUState | None = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
        starts_BT: Tensor | None = None,
    ) -> tuple[Tensor, RGLRUState]:
        """See `Mixer`."""
        window_BWC, hidden_BI = state if state is not None else (None, None)
        projected_BTE = self.in_proj(x_BTD)
        if inject_BTE is not None:
            projected_BTE = projected_BTE + inject_BTE
        x_BTI, gate_BTI = projected_BTE.split(self.inner, dim=-1)
        taps_CW = self.conv1d.effective()[:, 0]
        x_BTI, window_BWC = conv(x_BTI, taps_CW, self.conv1d.bias, window_BWC, valid_B, starts_BT)
        decay_BTI, input_BTI = self._gated(x_BTI)
        if starts_BT is not None:
            decay_BTI = decay_BTI.where(~starts_BT[..., None], 0)
        decay_BTI, input_BTI = within(decay_BTI, input_BTI, valid_B)
        h_BTI, hidden_BI = recurrence(decay_BTI, input_BTI, hidden_BI)
        y_BTD = self.dropout(self.out_proj(h_BTI * F.gelu(gate_BTI, approximate="tanh")))
        return y_BTD, RGLRUState(window_BWC, hidden_BI)

    def _gated(self, x_BTI: Tensor) -> tuple[Tensor, Tensor]:
        """The decay a and what is added, in float32 or wider."""
        wide = torch.promote_types(self.decay.dtype, torch.float32)
        r_BTI = self._opened(x_BTI, self.gate_r.effective(), self.bias_r.to(wide))
        i_BTI = self._opened(x_BTI, self.gate_i.effective(), self.bias_i.to(wide))
        log_BTI = -SHARPNESS * r_BTI * F.softplus(self.decay.to(wide))
        # Where nothing decays, the root's slope would be infinite.
        root_BTI = torch.sqrt((-torch.expm1(2 * log_BTI)).clamp(min=1e-12))
        return log_BTI.exp(), root_BTI * i_BTI * x_BTI.to(wide)

    def _opened(self, x_BTI: Tensor, weight_IP: Tensor, bias_I: Tensor) -> Tensor:
        """σ(W x + b) of the blocks on the diagonal of W."""
        heads = self.config.heads
        x_BTHP = x_BTI.to(weight_IP.dtype).unflatten(-1, (heads, -1))
        gate_BTHP = torch.einsum("bthp,hqp->bthq", x_BTHP, weight_IP.unflatten(0, (heads, -1)))
        return torch.sigmoid(gate_BTHP.flatten(2).to(bias_I.dtype) + bias_I)

    def flops_per_token(self, length: int) -> float:
        """Projections, convolution, gates and the recurrence."""
        projections = 3 * self.width * self.inner
        gates = 2 * self.inner * self.inner // self.config.heads
        return 2.0 * (projections + gates + self.inner * (self.config.conv_width + 2))
