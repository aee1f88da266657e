"""Elman's network: the plain recurrent one.

    h_t = tanh(W_ih u_t + b_ih + W_hh h_{t−1} + b_hh),   u = W_in x + inject

Read `rnn.py` next: it holds all that is not said here.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from equilm.nn.rnn import Recurrent


@dataclass(frozen=True, kw_only=True)
class ElmanConfig:
    """Sizes of an Elman mixer.

    Args:
        expand: Width of the hidden state / D.
    """

    kind: Literal["elman"] = "elman"
    expand: int = 1

    def __post_init__(self) -> None:
        if self.expand < 1:
            raise ValueError(f"expand: expected an integer >= 1, got {self.expand}")


class ElmanState(NamedTuple):
    """The hidden state, in float32."""

    hidden_BI: Tensor


class Elman(Recurrent):
    """A tanh of the input and the hidden state before.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether the projections in and out carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Source: Elman 1990, "Finding structure in time".
    """

    def __init__(
        self, config: ElmanConfig, width: int, *, weight_norm: bool = False, dropout: float = 0.0
    ) -> None:
        inner = config.expand * width
        super().__init__(torch.rnn_tanh, 1, inner, width, weight_norm=weight_norm, dropout=dropout)

    def init_state(self, batch: int, capacity: int) -> ElmanState:
        """Zeros; the state does not grow with `capacity`."""
        return ElmanState(self.zeros(batch))
