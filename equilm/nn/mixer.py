"""What a mixer is, and its laws.

Everything that maps tokens and a state to outputs and a state is one: Mamba2, attention, a whole
stack, and the equilibrium of a stack.

The laws, which `tests/nn/test_laws.py` runs over every row of the table MIXERS:

- causal: y_t depends on x_0 … x_t and the state, on nothing later;
- chunk:  splitting the tokens anywhere, and passing the state on, gives the same y;
- value:  the state given is not changed: keep the old one to reject the tokens, the new to accept;
- row:    a row does not depend on its neighbours in the batch;
- empty:  `None` means a fresh state;
- valid:  tokens past `valid_B` change neither the outputs before them nor the next state;
- reset:  where `takes_starts`, a token at which `starts_BT` is true finds a fresh state, so that
          documents in one row give what they give apart.

Read `mamba2.py` next.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

# A (named) tuple of tensors, batch first; recurrent parts in float32. Attention keeps preallocated
# buffers whose slots past `length_B` are scratch: of several results from one state only the last
# is live, so clone before branching.
State = Any


class Mixer(nn.Module, ABC):
    """A causal map over tokens with a state.

    One with `takes_starts` has a fifth argument of `forward`, `starts_BT: Tensor | None = None`,
    (B, T) bool: the tokens that open a document.
    """

    inject_width: int  # E, the width of what is added inside the input projections
    takes_scaled = False  # whether x may come in 8 bits (`equilm/ops/fp8.py`)
    takes_starts = False  # whether a row may hold several documents
    recordable = False  # whether graphs may hold a token's evaluation: it asks a GPU nothing
    spares_states = False  # whether `peek` and `advance_some` write less than `forward` there

    @abstractmethod
    def init_state(self, batch: int, capacity: int) -> State:
        """Return the state before the first token, for rows of at most `capacity` tokens."""

    @abstractmethod
    def forward(
        self,
        x_BTD: Tensor,
        state: State = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Return y_BTD and the state after the first `valid_B` (all, if `None`) of the T tokens."""

    def token(
        self,
        norm: nn.Module,
        r_BTD: Tensor,
        y_BTD: Tensor | None,
        state: State,
        inject_BTE: Tensor | None,
        advance: bool | Tensor,
    ) -> tuple[Tensor, Tensor, State] | None:
        """Do a whole layer for one token a row: r ← r + y, norm, this mixer.

        Returns the stream r, the branch y still to be added, and the next state, which may be
        anything unless `advance`, or for rows where that is false; `None` where there are no
        kernels for it, as by default.
        """
        return None

    def initialise_own(self, generator: torch.Generator) -> None:
        """Set the parameters that are this mixer's own, not its children's, in place.

        `equilm/nn/init.py` sets those of projections, taps and norms.
        """
        return None

    def peek(self, x_BTD: Tensor, state: State, inject_BTE: Tensor | None) -> Tensor:
        """Return the outputs alone, for a call whose next state nobody wants."""
        y_BTD: Tensor = self(x_BTD, state, inject_BTE)[0]
        return y_BTD

    def advance_some(
        self, x_B1D: Tensor, state: State, inject_B1E: Tensor | None, wanted_B: Tensor
    ) -> tuple[Tensor, State]:
        """Return the outputs of one token a row, and a state that holds after it where wanted.

        Of other rows it may be anything: where there are kernels for it, they are not written.
        """
        result: tuple[Tensor, State] = self(x_B1D, state, inject_B1E)
        return result

    @abstractmethod
    def flops_per_token(self, length: int) -> float:
        """Return the multiply–add operations × 2 of one token at context `length`, forward."""
