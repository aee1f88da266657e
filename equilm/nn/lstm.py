"""LSTM: a recurrent network with a cell beside the hidden state, and three gates.

    i, f, o = σ(W u_t + U h_{t−1} + b),   g = tanh(W_g u_t + U_g h_{t−1} + b_g)
    c_t = f c_{t−1} + i g,   h_t = o tanh(c_t),   u = W_in x + inject

Read `rnn.py` next: it holds all that is not said here.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from equilm.nn.rnn import Recurrent


@dataclass(frozen=True, kw_only=True)
class LSTMConfig:
    """Sizes of an LSTM mixer.

    Args:
        expand: Width of the hidden state / D.
    """

    kind: Literal["lstm"] = "lstm"
    expand: int = 1

    def __post_init__(self) -> None:
        if self.expand < 1:
            raise ValueError(f"expand: expected an integer >= 1, got {self.expand}")


class LSTMState(NamedTuple):
    """The hidden state and the cell, in float32."""

    hidden_BI: Tensor
    cell_BI: Tensor


class LSTM(Recurrent):
    """Long short-term memory: four products with the input, four with the hidden state.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether the projections in and out carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Source: Hochreiter and Schmidhuber 1997; forget gates by Gers et al. 2000.
    """

    def __init__(
        self, config: LSTMConfig, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        inner = config.expand * width
        super().__init__(torch.lstm, 4, inner, width, weight_norm=weight_norm, dropout=dropout)

    def init_state(self, batch: int, capacity: int) -> LSTMState:
        """Zeros; the state does not grow with `capacity`."""
        return LSTMState(self.zeros(batch), self.zeros(batch))
