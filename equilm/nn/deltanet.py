"""DeltaNet and DeltaProduct: a memory that corrects what a key holds, J times a token.

    [q | k | v | β | …] = W_in x + inject;  q, k, v = SiLU(conv(q, k, v));  q, k to length 1
    J times S ← S + β k (v − Sᵀ k)ᵀ,   y = Sᵀ q / √N,   W_out RMSNorm(y)

β is σ(β), or twice that: then 1 − β, which a step multiplies the state by along k, reaches −1. With
a forget gate a head fades by exp(−exp(A_log) softplus(f + dt_bias)) before its J steps, and an
output gate multiplies by SiLU(gate); J = 1 with both is the gated DeltaNet. The state has
H · N · P numbers with N = P = D / H, and a window. Read `rwkv6.py` next.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilm.nn.key_value import HeadOutput, split_evenly
from equilm.nn.linear import DepthwiseTaps, Linear
from equilm.nn.mixer import Mixer
from equilm.nn.norm import RMSNorm
from equilm.nn.state_space import log_uniform
from equilm.ops.conv import conv_silu
from equilm.ops.delta import delta_rule
from equilm.ops.linear_attention import masked


@dataclass(frozen=True, kw_only=True)
class _DeltaConfig:
    """What both have.

    Args:
        heads: H, of width D / H. Published: heads of width 128.
        conv_width: W, taps of the convolution.
        steps: J, corrections a token.
        eigenvalues: Of a step: "positive" in [0, 1] or "signed" in [−1, 1].
        forget_gate: Whether the memory fades.
        output_gate: Whether a gate multiplies the output.
        norm_eps: Added to the mean square in the norm of each head, > 0.
    """

    heads: int = 2
    conv_width: int = 4
    steps: int = 1
    eigenvalues: Literal["positive", "signed"] = "positive"
    forget_gate: bool = False
    output_gate: bool = False
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("conv_width", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps: expected a number > 0, got {self.norm_eps}")


@dataclass(frozen=True, kw_only=True)
class DeltaNetConfig(_DeltaConfig):
    """DeltaNet as published."""

    kind: Literal["deltanet"] = "deltanet"


@dataclass(frozen=True, kw_only=True)
class DeltaProductConfig(_DeltaConfig):
    """DeltaProduct as published for state tracking, but without its gates."""

    kind: Literal["deltaproduct"] = "deltaproduct"
    steps: int = 2
    eigenvalues: Literal["positive", "signed"] = "signed"


class DeltaState(NamedTuple):
    """What the delta rule carries from token to token, in float32."""

    window_BWC: Tensor  # the last W − 1 inputs of the convolution
    memory_BHNP: Tensor


class DeltaNet(Mixer):
    """The delta rule between two projections.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether projections and taps carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Raises:
        ValueError: If the heads do not divide evenly.

    Source: Schlag et al. 2021, arXiv 2102.11174; Yang et al. 2024, arXiv 2406.06484; Grazzi et al.
    2024, arXiv 2411.12537; Siems et al. 2025, arXiv 2502.10297.
    """

    takes_starts = True

    def __init__(
        self,
        config: DeltaNetConfig | DeltaProductConfig,
        width: int,
        *,
        weight_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.size = split_evenly("width", width, config.heads)
        self.channels = (1 + 2 * config.steps) * width
        rates, gate = config.steps * config.heads, width if config.output_gate else 0
        self.sizes = [self.channels, rates, config.heads if config.forget_gate else 0, gate]
        self.inject_width = sum(self.sizes)
        self.in_proj = Linear(width, self.inject_width, weight_norm=weight_norm)
        self.conv1d = DepthwiseTaps(self.channels, config.conv_width, weight_norm=weight_norm)
        if config.forget_gate:
            self.dt_bias = nn.Parameter(torch.empty(config.heads))
            self.A_log = nn.Parameter(torch.empty(config.heads))
        norm = RMSNorm(self.size, eps=config.norm_eps)
        self.output = HeadOutput(norm, width, width, weight_norm=weight_norm, dropout=dropout)

    def initialise_own(self, generator: torch.Generator) -> None:
        """Set the forget gate as Mamba2's."""
        if self.config.forget_gate:
            dt_H = log_uniform(self.dt_bias.shape, 1e-3, 1e-1, generator).exp().clamp(min=1e-4)
            self.dt_bias.copy_(dt_H + torch.log(-torch.expm1(-dt_H)))
            self.A_log.copy_(torch.log(1 + 15 * torch.rand(self.A_log.shape, generator=generator)))

    def init_state(self, batch: int, capacity: int) -> DeltaState:
        """Zeros; the state does not grow with `capacity`."""
        like = next(self.parameters())
        dtype, size = torch.promote_types(like.dtype, torch.float32), self.size
        return DeltaState(
            like.new_zeros(batch, self.config.conv_width - 1, self.channels, dtype=dtype),
            like.new_zeros(batch, self.config.heads, size, size, dtype=dtype),
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: DeltaState | None = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
        starts_BT: Tensor | None = None,
    ) -> tuple[Tensor, DeltaState]:
        """See `Mixer`."""
        window_BWC, memory_BHNP = state if state is not None else (None, None)
        projected_BTE = self.in_proj(x_BTD)
        if inject_BTE is not None:
            projected_BTE = projected_BTE + inject_BTE
        qkv_BTC, rate_BTX, fade_BTH, gate_BTI = projected_BTE.split(self.sizes, dim=-1)
        qkv_BTC, window_BWC = conv_silu(
            qkv_BTC,
            self.conv1d.effective()[:, 0],
            self.conv1d.bias,
            window_BWC,
            valid_B=valid_B,
            starts_BT=starts_BT,
        )
        beta_BTJH, log_decay_BTH = masked(*self._rates(rate_BTX, fade_BTH), valid_B, starts_BT)
        y_BTHP, memory_BHNP = delta_rule(
            *self._parts(qkv_BTC), beta_BTJH, log_decay_BTH, memory_BHNP
        )
        y_BTD = self.output(y_BTHP, gate_BTI if self.config.output_gate else None)
        return y_BTD, DeltaState(window_BWC, memory_BHNP)

    def flops_per_token(self, length: int) -> float:
        """The projections, the convolution, J corrections and one read of the memory."""
        projections = self.width * (self.inject_width + self.width)
        memory = (1 + 2 * self.config.steps) * self.width * self.size
        return 2.0 * (projections + self.channels * self.config.conv_width + memory)

    def _parts(self, qkv_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, T, H, N), keys and values (B, T, J, H, N)."""
        wide = torch.promote_types(qkv_BTC.dtype, torch.float32)
        parts_BTXHN = qkv_BTC.to(wide).unflatten(-1, (-1, self.config.heads, self.size))
        steps = self.config.steps
        q_BT1HN, k_BTJHN, v_BTJHN = parts_BTXHN.split([1, steps, steps], dim=2)
        q_BTHN = F.normalize(q_BT1HN[:, :, 0], dim=-1) * self.size**-0.5
        return q_BTHN, F.normalize(k_BTJHN, dim=-1), v_BTJHN

    def _rates(self, rate_BTX: Tensor, fade_BTH: Tensor) -> tuple[Tensor, Tensor]:
        """β (B, T, J, H), and the logarithm of what is left of the state before its steps."""
        wide = torch.promote_types(rate_BTX.dtype, torch.float32)
        beta_BTJH = torch.sigmoid(rate_BTX.to(wide)).unflatten(-1, (-1, self.config.heads))
        if self.config.eigenvalues == "signed":
            beta_BTJH = 2 * beta_BTJH
        if not self.config.forget_gate:
            return beta_BTJH, beta_BTJH.new_zeros(*beta_BTJH.shape[:2], 1)
        step_BTH = F.softplus(fade_BTH.to(wide) + self.dt_bias)
        return beta_BTJH, -torch.exp(self.A_log.to(wide)) * step_BTH
