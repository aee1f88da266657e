"""GRU: a recurrent network with a gate to forget and one to update.

    r, g = σ(W u_t + b + U h_{t−1} + b'),   n = tanh(W_n u_t + b_n + r (U_n h_{t−1} + b'_n))
    h_t = (1 − g) n + g h_{t−1},   u = W_in x + inject

Read `rnn.py` next: it holds all that is not said here.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from equilm.nn.rnn import Recurrent


@dataclass(frozen=True, kw_only=True)
class GRUConfig:
    """Sizes of a GRU mixer.

    Args:
        expand: Width of the hidden state / D.
    """

    kind: Literal["gru"] = "gru"
    expand: int = 1

    def __post_init__(self) -> None:
        if self.expand < 1:
            raise ValueError(f"expand: expected an integer >= 1, got {self.expand}")


class GRUState(NamedTuple):
    """The hidden state, in float32."""

    hidden_BI: Tensor


class GRU(Recurrent):
    """Gated recurrent unit: three products with the input, three with the hidden state.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether the projections in and out carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Source: Cho et al. 2014, arXiv 1406.1078, in the form of cuDNN.
    """

    def __init__(
        self, config: GRUConfig, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        inner = config.expand * width
        super().__init__(torch.gru, 3, inner, width, weight_norm=weight_norm, dropout=dropout)

    def init_state(self, batch: int, capacity: int) -> GRUState:
        """Zeros; the state does not grow with `capacity`."""
        return GRUState(self.zeros(batch))
