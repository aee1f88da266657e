"""Liquid-S4: a diagonal state-space model that is driven by products of neighbouring inputs too.

    h_t = Ā h_{t−1} + B̄ u_t + B̄² u_t u_{t−1},   y = 2 Re(C h) + D u

It is what is left, to second order in neighbours, of a model whose rate its input changes:
h_t = (Ā + B̄ u_t) h_{t−1} + B̄ u_t. What stands around it is in `state_space.py`, what it learns in
`diagonal.py`. Read `h3.py` next.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from equilm.nn.diagonal import Diagonal
from equilm.nn.state_space import StateSpace, StateSpaceConfig
from equilm.ops.diagonal import diagonal_ssm


@dataclass(frozen=True, kw_only=True)
class LiquidS4Config(StateSpaceConfig):
    """Sizes of a Liquid-S4 mixer, which are those of `StateSpaceConfig`."""

    kind: Literal["liquid_s4"] = "liquid_s4"


class LiquidS4(StateSpace):
    """Diagonal S4 with a liquid kernel of order 2 (the paper's KB kernel).

    Its state has one number a channel more than S4D's, the last input, as a real part.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether the projections in and out carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Source: Hasani et al. 2022, arXiv 2209.12951.
    """

    def __init__(
        self, config: LiquidS4Config, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        inner, pairs = config.expand * width, config.state_size // 2
        super().__init__(
            (inner, pairs + 1),
            inner,
            width,
            gated=config.gated,
            weight_norm=weight_norm,
            dropout=dropout,
        )
        self.config = config
        self.system = Diagonal(inner, config.state_size)

    def initialise_own(self, generator: torch.Generator) -> None:
        """Set the model as `Diagonal` does, D normal."""
        self.system.initialise(self.config.step_range, generator)
        self.D.copy_(torch.randn(self.inner, generator=generator))

    def ssm(
        self, u_BTI: Tensor, state_BX: Tensor | None, valid_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `StateSpace`."""
        log_decay_IN, b_IN, c_IN = self.system.discrete(step_scale=self.config.step_scale)
        hidden_BIN, input_BI = None, torch.zeros_like(u_BTI[:, 0])
        if state_BX is not None:
            hidden_BIN, input_BI = state_BX[..., :-1], state_BX[..., -1].real
        seen_BSI = torch.cat([input_BI[:, None], u_BTI], dim=1)
        product_BTI = u_BTI * seen_BSI[:, :-1]
        y_BTI, first_BIN = diagonal_ssm(u_BTI, log_decay_IN, b_IN, c_IN, hidden_BIN, valid_B)
        liquid_BTI, second_BIN = diagonal_ssm(
            product_BTI, log_decay_IN, b_IN**2, c_IN, None, valid_B
        )
        last_BI = seen_BSI[:, -1]
        if valid_B is not None:
            index_B1I = valid_B[:, None, None].expand(-1, 1, self.inner)
            last_BI = seen_BSI.gather(1, index_B1I)[:, 0]
        last_BI1 = torch.complex(last_BI, torch.zeros_like(last_BI))[..., None]
        return y_BTI + liquid_BTI, torch.cat([first_BIN + second_BIN, last_BI1], dim=-1)

    def ssm_flops(self) -> float:
        """See `StateSpace`: that of S4D, a product, and another real input."""
        return self.system.flops() + self.inner * (1.0 + 4.0 * self.config.state_size / 2)
