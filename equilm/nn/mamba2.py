"""Mamba2: a selective state-space mixer with a convolution before the scan and a gate behind it.

Weights and state live here; the arithmetic is in `equilm/ops/gated_scan.py`. Read `block.py` next.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from equilm.nn.linear import DepthwiseTaps, Linear, VariationalDropout
from equilm.nn.mixer import Mixer, State
from equilm.nn.norm import GatedRMSNorm, RMSNorm, compute_dtype
from equilm.ops.fp8 import Scaled
from equilm.ops.gated_scan import Weights, gated_scan
from equilm.ops.gated_token import gated_token


@dataclass(frozen=True, kw_only=True)
class Mamba2Config:
    """Sizes of a Mamba2 mixer; the defaults are the published ones.

    Args:
        expand: d_inner / D.
        head_width: P; H = expand · D / P.
        state_size: N.
        groups: G, sets of input and output directions shared by H / G heads, and parts of the
            gated norm.
        conv_width: W, taps of the convolution.
        norm_eps: Added to the mean square in the gated norm, > 0.
        eigenvalues: Where a token's decay lies: "positive" [0, 1], as published, or "signed"
            [−1, 1] (Grazzi et al. 2024, arXiv 2411.12537), with which a state can change its sign.
    """

    kind: Literal["mamba2"] = "mamba2"
    expand: int = 2
    head_width: int = 64
    state_size: int = 128
    groups: int = 1
    conv_width: int = 4
    norm_eps: float = 1e-5
    eigenvalues: Literal["positive", "signed"] = "positive"

    def __post_init__(self) -> None:
        for name in ("expand", "head_width", "state_size", "groups", "conv_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps: expected a number > 0, got {self.norm_eps}")


class Mamba2State(NamedTuple):
    """What Mamba2 carries from token to token, in float32."""

    window_BWC: Tensor  # the last W − 1 inputs of the convolution
    scan_BHPN: Tensor


class Mamba2(Mixer):
    """[g | xBC | dt] = W_in x + inject; convolve, scan, gate, normalise, project back.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether projections and taps carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Raises:
        ValueError: If the heads do not divide evenly.

    Source: Dao and Gu 2024, arXiv 2405.21060; injection as in arXiv 2502.07827.
    """

    takes_scaled = True
    takes_starts = True

    def __init__(
        self, config: Mamba2Config, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.inner = config.expand * width
        if self.inner % config.head_width:
            raise ValueError(
                f"mixer.head_width: expected a divisor of expand * width = {self.inner}, "
                f"got {config.head_width}"
            )
        self.heads = self.inner // config.head_width
        if self.heads % config.groups:
            raise ValueError(
                f"mixer.groups: expected a divisor of {self.heads} heads, got {config.groups}"
            )
        self.channels = self.inner + 2 * config.groups * config.state_size
        self.inject_width = self.inner + self.channels + self.heads
        self.in_proj = Linear(width, self.inject_width, weight_norm=weight_norm, after_norm=True)
        self.conv1d = DepthwiseTaps(self.channels, config.conv_width, weight_norm=weight_norm)
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.empty(self.heads))
        self.norm = GatedRMSNorm(self.inner, eps=config.norm_eps)
        self.out_proj = Linear(self.inner, width, weight_norm=weight_norm, after_norm=True)
        self.dropout = VariationalDropout(dropout)
        # The kernels of `token` know no other.
        self.recordable = self.spares_states = config.eigenvalues == "positive"

    def initialise_own(self, generator: torch.Generator) -> None:
        """dt_bias = softplus⁻¹(dt), dt log-uniform in [1e-3, 1e-1]; A_log = log U(1, 16); D = 1."""
        low, high = math.log(1e-3), math.log(1e-1)
        dt_H = torch.exp(low + (high - low) * torch.rand(self.heads, generator=generator))
        self.dt_bias.copy_(dt_H + torch.log(-torch.expm1(-dt_H)))
        self.A_log.copy_(torch.log(1 + 15 * torch.rand(self.heads, generator=generator)))
        self.D.fill_(1.0)

    def init_state(self, batch: int, capacity: int) -> Mamba2State:
        """Zeros; the state does not grow with `capacity`."""
        config, device = self.config, self.A_log.device
        dtype = torch.promote_types(self.A_log.dtype, torch.float32)
        return Mamba2State(
            torch.zeros(batch, config.conv_width - 1, self.channels, dtype=dtype, device=device),
            torch.zeros(
                batch,
                self.heads,
                config.head_width,
                config.state_size,
                dtype=dtype,
                device=device,
            ),
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: Mamba2State | None = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
        starts_BT: Tensor | None = None,
    ) -> tuple[Tensor, Mamba2State]:
        """See `Mixer`."""
        window_BWC, scan_BHPN = state if state is not None else (None, None)
        proj_BTE, scale = self.in_proj(x_BTD), self.norm.scale()
        y_BTI, window_BWC, scan_BHPN = gated_scan(
            proj_BTE,
            inject_BTE,
            self._weights(),
            window_BWC,
            scan_BHPN,
            groups=self.config.groups,
            eps=self.norm.eps,
            signed=self.config.eigenvalues == "signed",
            valid_B=valid_B,
            starts_BT=starts_BT,
            dtype=compute_dtype(proj_BTE),
            scale=scale,
        )
        y_BTD = self.out_proj(y_BTI if scale is None else Scaled(y_BTI, scale))
        return self.dropout(y_BTD), Mamba2State(window_BWC, scan_BHPN)

    def token(
        self,
        norm: nn.Module,
        r_BTD: Tensor,
        y_BTD: Tensor | None,
        state: Mamba2State | None,
        inject_BTE: Tensor | None,
        advance: bool | Tensor,
    ) -> tuple[Tensor, Tensor, State] | None:
        """See `Mixer`; on a GPU, while nothing is recorded or dropped."""
        signed = self.config.eigenvalues == "signed"
        if state is None or signed or not isinstance(norm, RMSNorm):
            return None
        is_wide = self.A_log.dtype.itemsize >= 4 and compute_dtype(r_BTD) is None
        if r_BTD.device.type == "cpu" and is_wide:
            return self._token(norm, r_BTD, y_BTD, state, inject_BTE, advance)
        if (
            not r_BTD.is_cuda
            or r_BTD.dtype != torch.float32
            or torch.is_grad_enabled()
            or (self.training and self.dropout.rate > 0)
        ):
            return None
        return self._token_by_kernels(norm, r_BTD, y_BTD, state, inject_BTE, advance)

    def _token_by_kernels(
        self,
        norm: RMSNorm,
        r_BTD: Tensor,
        y_BTD: Tensor | None,
        state: Mamba2State,
        inject_BTE: Tensor | None,
        advance: bool | Tensor,
    ) -> tuple[Tensor, Tensor, State]:
        from equilm.ops.token_triton import Layer, layer_token

        r_RD, y_RD, window_BWC, scan_BHPN = layer_token(
            r_BTD[:, 0],
            None if y_BTD is None else y_BTD[:, 0],
            Layer(
                norm_D=norm.weight,
                in_ED=self.in_proj.effective(),
                out_DI=self.out_proj.effective(),
                narrow_in=self.in_proj.narrowed,
                narrow_out=self.out_proj.narrowed,
                inner=self._weights(),
                groups=self.config.groups,
                eps=norm.eps,
                inner_eps=self.norm.eps,
            ),
            state.window_BWC.contiguous(),
            state.scan_BHPN.contiguous(),
            None if inject_BTE is None else inject_BTE[:, 0],
            advance=advance,
            # What was not prepared, or not dense, is made by a kernel just before.
            follows=y_BTD is not None
            and self._is_prepared()
            and all(leaf.is_contiguous() for leaf in state),
        )
        after = None
        if window_BWC is not None and scan_BHPN is not None:
            after = Mamba2State(window_BWC, scan_BHPN)
        return r_RD[:, None], y_RD[:, None], after

    def _token(
        self,
        norm: RMSNorm,
        r_BTD: Tensor,
        y_BTD: Tensor | None,
        state: Mamba2State,
        inject_BTE: Tensor | None,
        advance: bool | Tensor,
    ) -> tuple[Tensor, Tensor, State]:
        r_BTD, a_BTD = norm.after(r_BTD, y_BTD)
        y_BI, window_BWC, scan_BHPN = gated_token(
            self.in_proj(a_BTD)[:, 0],
            None if inject_BTE is None else inject_BTE[:, 0],
            self._weights(),
            *state,
            groups=self.config.groups,
            eps=self.norm.eps,
            advance=advance is not False,
        )
        after = None
        if window_BWC is not None and scan_BHPN is not None:
            after = Mamba2State(window_BWC, scan_BHPN)
        return r_BTD, self.dropout(self.out_proj(y_BI[:, None])), after

    def flops_per_token(self, length: int) -> float:
        """Projections, convolution and the recurrent form of the scan."""
        config = self.config
        projections = self.width * self.inject_width + self.inner * self.width
        scan = 3 * self.inner * config.state_size
        return 2.0 * (projections + self.channels * config.conv_width + scan)

    def _is_prepared(self) -> bool:
        parts = (self.in_proj, self.conv1d, self.out_proj)
        return all(part.is_prepared() for part in parts)

    def _weights(self) -> Weights:
        return Weights(
            taps_CW=self.conv1d.effective()[:, 0],
            taps_bias_C=self.conv1d.bias,
            dt_bias_H=self.dt_bias,
            a_log_H=self.A_log,
            skip_H=self.D,
            norm_I=self.norm.weight,
        )
