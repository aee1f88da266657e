"""QRNN: gates from the last W inputs by a convolution, and a recurrence without products.

    [z | f | o] = W_in [x_{t−W+1} … x_t] + inject
    c_t = σ(f) c_{t−1} + (1 − σ(f)) tanh(z),   y = W_out (σ(o) c)

The recurrence is `equilm/ops/recurrence.py`. Read `lru.py` next.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from equilm.nn.linear import Linear, VariationalDropout
from equilm.nn.mixer import Mixer
from equilm.ops.recurrence import recurrence, within


@dataclass(frozen=True, kw_only=True)
class QRNNConfig:
    """Sizes of a QRNN mixer; the defaults are the published ones.

    Args:
        expand: I / D, width of the cell.
        conv_width: W, inputs that a gate sees.
    """

    kind: Literal["qrnn"] = "qrnn"
    expand: int = 1
    conv_width: int = 2

    def __post_init__(self) -> None:
        for name in ("expand", "conv_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")


class QRNNState(NamedTuple):
    """What QRNN carries from token to token, in float32."""

    window_BWD: Tensor  # the last W − 1 inputs
    cell_BI: Tensor


class QRNN(Mixer):
    """Quasi-recurrent network with forget and output gates (fo-pooling).

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether the projections in and out carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Source: Bradbury et al. 2016, arXiv 1611.01576.
    """

    def __init__(
        self, config: QRNNConfig, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.config, self.width, self.inner = config, width, config.expand * width
        self.inject_width = 3 * self.inner
        self.in_proj = Linear(config.conv_width * width, self.inject_width, weight_norm=weight_norm)
        self.out_proj = Linear(self.inner, width, weight_norm=weight_norm)
        self.dropout = VariationalDropout(dropout)

    def init_state(self, batch: int, capacity: int) -> QRNNState:
        """Zeros; the state does not grow with `capacity`."""
        like = next(self.parameters())
        dtype = torch.promote_types(like.dtype, torch.float32)
        return QRNNState(
            like.new_zeros(batch, self.config.conv_width - 1, self.width, dtype=dtype),
            like.new_zeros(batch, self.inner, dtype=dtype),
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: QRNNState | None = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
    ) -> tuple[Tensor, QRNNState]:
        """See `Mixer`."""
        window_BWD, cell_BI = state if state is not None else self.init_state(len(x_BTD), 0)
        tokens = x_BTD.shape[1]
        padded_BSD = torch.cat([window_BWD, x_BTD.to(window_BWD.dtype)], dim=1)
        # Each token beside those before it, the oldest first.
        taps = [padded_BSD[:, tap : tap + tokens] for tap in range(self.config.conv_width)]
        gates_BTE = self.in_proj(torch.cat(taps, dim=-1))
        if inject_BTE is not None:
            gates_BTE = gates_BTE + inject_BTE
        z_BTI, f_BTI, o_BTI = gates_BTE.to(cell_BI.dtype).split(self.inner, dim=-1)
        # 1 − σ(f) is σ(−f), without a loss of digits.
        inputs_BTI = torch.sigmoid(-f_BTI) * torch.tanh(z_BTI)
        decay_BTI, inputs_BTI = within(torch.sigmoid(f_BTI), inputs_BTI, valid_B)
        c_BTI, cell_BI = recurrence(decay_BTI, inputs_BTI, cell_BI)
        y_BTD = self.dropout(self.out_proj(torch.sigmoid(o_BTI) * c_BTI))
        return y_BTD, QRNNState(self._window(padded_BSD, tokens, valid_B), cell_BI)

    def flops_per_token(self, length: int) -> float:
        """The projections, and the recurrence."""
        in_proj = self.in_proj.inputs * self.inject_width
        return 2.0 * (in_proj + self.inner * self.width + 2 * self.inner)

    def _window(self, padded_BSD: Tensor, tokens: int, valid_B: Tensor | None) -> Tensor:
        """The W − 1 inputs before position `valid`, or the last ones."""
        if valid_B is None:
            return padded_BSD[:, tokens:]
        slots_BW = valid_B[:, None] + torch.arange(
            self.config.conv_width - 1, device=valid_B.device
        )
        return padded_BSD.gather(1, slots_BW[..., None].expand(-1, -1, self.width))
