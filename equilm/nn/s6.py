"""S6, the mixer of Mamba: convolve, make steps and directions from the result, scan, gate.

    [x | gate] = W_in x + inject,   x = SiLU(conv(x)),   [r | b | c] = W_x x
    dt = softplus(W_dt r + dt_bias),   y = scan(x, dt, −exp(A_log), b, c) + D x
    W_out (y · SiLU(gate))

What is not selective is not made from x: W_dt r is left out, b or c is a vector of its own.
The scan is `equilm/ops/selective.py`. Read `mamba2.py` next.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilm.nn.linear import DepthwiseTaps, Linear, VariationalDropout
from equilm.nn.mixer import Mixer
from equilm.nn.state_space import log_uniform
from equilm.ops.conv import conv_silu
from equilm.ops.selective import selective_scan
from equilm.ops.selective_token import selective_token


@dataclass(frozen=True, kw_only=True)
class S6Config:
    """Sizes of an S6 mixer; the defaults are the published ones.

    Args:
        expand: I / D.
        state_size: N, numbers of each channel's state.
        step_rank: R, through how many numbers the steps are made; `None` means D / 16, rounded up.
        conv_width: W, taps of the convolution.
        init: Where A starts: "real" −(n+1), "half" −½, "random" −exp(N(0, 1)), or "lin" −½ + iπn,
            which makes A, the directions and the state complex.
        step_range: Least and largest step at the start.
        selective: Which of the steps and of the directions in ("b") and out ("c") depend on the
            token, all as published; those that do not are the same for every token, and the
            directions for every channel too.
    """

    kind: Literal["s6"] = "s6"
    expand: int = 2
    state_size: int = 16
    step_rank: int | None = None
    conv_width: int = 4
    init: Literal["real", "half", "random", "lin"] = "real"
    step_range: tuple[float, float] = (1e-3, 1e-1)
    selective: tuple[Literal["step", "b", "c"], ...] = ("step", "b", "c")

    def __post_init__(self) -> None:
        if len(set(self.selective)) < len(self.selective):
            raise ValueError(f"selective: expected each name once, got {self.selective}")
        for name in ("expand", "state_size", "step_rank", "conv_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {value}")
        if not 0 < self.step_range[0] < self.step_range[1]:
            raise ValueError(f"step_range: expected 0 < least < largest, got {self.step_range}")


class S6State(NamedTuple):
    """What S6 carries from token to token, in float32."""

    window_BWC: Tensor  # the last W − 1 inputs of the convolution
    scan_BIX: Tensor  # X = N, or (N, 2) for real and imaginary parts


class S6(Mixer):
    """Selective state space with one step size a channel.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether projections and taps carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Source: Gu and Dao 2023, arXiv 2312.00752; injection as in arXiv 2502.07827.
    """

    def __init__(
        self, config: S6Config, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.config, self.width, self.inner = config, width, config.expand * width
        self.complex, size = config.init == "lin", config.state_size
        self.step_rank = config.step_rank or math.ceil(width / 16)
        self.directions = 2 * size if self.complex else size
        self.inject_width = 2 * self.inner
        self.in_proj = Linear(width, self.inject_width, weight_norm=weight_norm)
        self.conv1d = DepthwiseTaps(self.inner, config.conv_width, weight_norm=weight_norm)
        sizes = {"step": self.step_rank, "b": self.directions, "c": self.directions}
        self.made = {name: sizes[name] for name in sizes if name in config.selective}
        if self.made:
            self.x_proj = Linear(self.inner, sum(self.made.values()), weight_norm=weight_norm)
        if "step" in self.made:
            self.dt_proj = Linear(self.step_rank, self.inner, weight_norm=weight_norm)
        if "b" not in self.made:
            self.b = nn.Parameter(torch.empty(self.directions))
        if "c" not in self.made:
            self.c = nn.Parameter(torch.empty(self.directions))
        self.dt_bias = nn.Parameter(torch.empty(self.inner))
        self.A_log = nn.Parameter(torch.empty(self.inner, size))
        if self.complex:
            self.A_imag = nn.Parameter(torch.empty(self.inner, size))
        self.D = nn.Parameter(torch.empty(self.inner))
        self.out_proj = Linear(self.inner, width, weight_norm=weight_norm)
        self.dropout = VariationalDropout(dropout)

    def initialise_own(self, generator: torch.Generator) -> None:
        """Set A as `init` says, D to 1, and steps log-uniform, at least 1e-4.

        Directions that are not selective start at 1 (in) and N(0, 1) (out).
        """
        dt_I = log_uniform(self.dt_bias.shape, *self.config.step_range, generator).exp()
        dt_I = dt_I.clamp(min=1e-4)
        self.dt_bias.copy_(dt_I + torch.log(-torch.expm1(-dt_I)))
        n_N = torch.arange(self.config.state_size)
        if self.config.init == "real":
            self.A_log.copy_(torch.log(n_N + 1.0))
        elif self.config.init == "random":
            self.A_log.copy_(torch.randn(self.A_log.shape, generator=generator))
        else:
            self.A_log.fill_(math.log(0.5))
        if self.complex:
            self.A_imag.copy_(math.pi * n_N)
        self.D.fill_(1.0)
        if "b" not in self.made:
            self.b.fill_(1.0)
        if "c" not in self.made:
            self.c.copy_(torch.randn(self.c.shape, generator=generator))

    def init_state(self, batch: int, capacity: int) -> S6State:
        """Zeros; the state does not grow with `capacity`."""
        dtype = torch.promote_types(self.A_log.dtype, torch.float32)
        size = (self.config.state_size, 2) if self.complex else (self.config.state_size,)
        return S6State(
            self.A_log.new_zeros(batch, self.config.conv_width - 1, self.inner, dtype=dtype),
            self.A_log.new_zeros(batch, self.inner, *size, dtype=dtype),
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: S6State | None = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
    ) -> tuple[Tensor, S6State]:
        """See `Mixer`."""
        window_BWC, scan_BIX = state if state is not None else (None, None)
        x_BTI, gate_BTI = self.in_proj(x_BTD).split(self.inner, dim=-1)
        add_BTI = None
        if inject_BTE is not None:
            add_BTI, add_gate_BTI = inject_BTE.split(self.inner, dim=-1)
            gate_BTI = gate_BTI + add_gate_BTI
        taps_CW = self.conv1d.effective()[:, 0]
        x_BTI, window_BWC = conv_silu(
            x_BTI, taps_CW, self.conv1d.bias, window_BWC, add_BTC=add_BTI, valid_B=valid_B
        )
        if x_BTI.shape[1] == 1 and scan_BIX is not None and valid_B is None and not self.complex:
            y_BTI, scan_BIX = self._token(x_BTI, gate_BTI, scan_BIX)
        else:
            y_BTI, scan_BIX = self._scan(x_BTI, scan_BIX, valid_B)
            y_BTI = y_BTI * F.silu(gate_BTI)
        y_BTD = self.dropout(self.out_proj(y_BTI))
        return y_BTD, S6State(window_BWC, scan_BIX)

    def _scan(
        self, x_BTI: Tensor, scan_BIX: Tensor | None, valid_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(self.A_log.dtype, torch.float32)
        step_BTI, b_BTN, c_BTN = self._selected(x_BTI, wide)
        dt_BTI = F.softplus(step_BTI)
        if valid_B is not None:
            within_BT = torch.arange(x_BTI.shape[1], device=valid_B.device) < valid_B[:, None]
            dt_BTI = dt_BTI.where(within_BT[..., None], 0)
        a_IN = -torch.exp(self.A_log.to(wide))
        if self.complex:
            a_IN = torch.complex(a_IN, self.A_imag.to(wide))
            b_BTN = torch.complex(*b_BTN.to(wide).chunk(2, dim=-1))
            c_BTN = torch.complex(*c_BTN.to(wide).chunk(2, dim=-1))
            scan_BIX = None if scan_BIX is None else torch.view_as_complex(scan_BIX)
        y_BTI, scan_BIX = selective_scan(x_BTI, dt_BTI, a_IN, b_BTN, c_BTN, self.D, scan_BIX)
        return y_BTI, torch.view_as_real(scan_BIX) if self.complex else scan_BIX

    def _token(self, x_B1I: Tensor, gate_B1I: Tensor, scan_BIN: Tensor) -> tuple[Tensor, Tensor]:
        """`_scan` and the gate, for one token."""
        parts = x_B1I, *self._selected(x_B1I, scan_BIN.dtype), gate_B1I
        x_BI, step_BI, b_BN, c_BN, gate_BI = (part[:, 0] for part in parts)
        y_BI, scan_BIN = selective_token(
            x_BI, step_BI, self.A_log, b_BN, c_BN, self.D, gate_BI, scan_BIN
        )
        return y_BI[:, None], scan_BIN

    def _selected(self, x_BTI: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return steps before softplus, and directions; of the token where they are selective."""
        made: dict[str, Tensor] = {}
        if self.made:
            parts = self.x_proj(x_BTI).split(list(self.made.values()), dim=-1)
            made = dict(zip(self.made, parts, strict=True))
        shape = (*x_BTI.shape[:2], -1)
        bias_BTI = self.dt_bias.to(wide).expand(shape)
        if "step" in made:
            bias_BTI = self.dt_proj(made["step"]).to(wide) + self.dt_bias
        b_BTN = made["b"] if "b" in made else self.b.expand(shape)
        c_BTN = made["c"] if "c" in made else self.c.expand(shape)
        return bias_BTI, b_BTN, c_BTN

    def flops_per_token(self, length: int) -> float:
        """Projections, convolution and the recurrent form of the scan."""
        steps = self.inner * (sum(self.made.values()) + self.made.get("step", 0))
        scan = 3 * self.inner * self.directions
        projections = self.width * self.inject_width + self.inner * self.width
        return 2.0 * (projections + steps + self.inner * self.config.conv_width + scan)
