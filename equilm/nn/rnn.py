"""What Elman, LSTM and GRU share: a projection in, PyTorch's own kernel over the tokens, one out.

    u = W_in x + inject,   h = kernel(u, state),   y = W_out h

Read `elman.py`, `gru.py`, `lstm.py` next.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from equilm import tree
from equilm.nn.linear import Linear, VariationalDropout
from equilm.nn.mixer import Mixer, State


class Recurrent(Mixer):
    """A recurrent network of one layer between two projections; parameters named as in PyTorch.

    Args:
        kernel: `torch.rnn_tanh`, `torch.gru` or `torch.lstm`.
        gates: How many products of width I make one step.
        inner: I, width of the hidden state.
        width: D.
        weight_norm: Whether the projections in and out carry weight norm.
        dropout: Rate of the variational dropout on the output.
    """

    def __init__(
        self,
        kernel: Callable[..., tuple[Tensor, ...]],
        gates: int,
        inner: int,
        width: int,
        *,
        weight_norm: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.kernel, self.gates, self.inner, self.width = kernel, gates, inner, width
        self.inject_width = inner
        self.in_proj = Linear(width, inner, weight_norm=weight_norm)
        self.weight_ih = nn.Parameter(torch.empty(gates * inner, inner))
        self.weight_hh = nn.Parameter(torch.empty(gates * inner, inner))
        self.bias_ih = nn.Parameter(torch.empty(gates * inner))
        self.bias_hh = nn.Parameter(torch.empty(gates * inner))
        self.out_proj = Linear(inner, width, weight_norm=weight_norm)
        self.dropout = VariationalDropout(dropout)

    @abstractmethod
    def init_state(self, batch: int, capacity: int) -> State:
        """Zeros: a named tuple of tensors (B, I)."""

    def initialise_own(self, generator: torch.Generator) -> None:
        """Draw U(−1, 1) / sqrt(I), as PyTorch does."""
        for weight in (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh):
            drawn = 2 * torch.rand(weight.shape, generator=generator) - 1
            weight.copy_(drawn / self.inner**0.5)

    def forward(
        self,
        x_BTD: Tensor,
        state: State = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """See `Mixer`."""
        u_BTI = self.in_proj(x_BTD)
        if inject_BTE is not None:
            u_BTI = u_BTI + inject_BTE
        before = state if state is not None else self.init_state(len(x_BTD), 0)
        dtype = before[0].dtype
        weights = [
            weight.to(dtype)
            for weight in (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        ]
        # Autocast would carry the state in half precision.
        with torch.autocast(u_BTI.device.type, enabled=False):
            y_BTI, hidden = self._run(u_BTI.to(dtype), before, weights, valid_B)
        after = type(before)(*(part_1BI[0] for part_1BI in hidden))
        if valid_B is not None:
            after = tree.select(valid_B > 0, after, before)
        return self.dropout(self.out_proj(y_BTI)), after

    def flops_per_token(self, length: int) -> float:
        """The two projections, and the products with inputs and hidden state."""
        return 4.0 * self.inner * (self.width + self.gates * self.inner)

    def zeros(self, batch: int) -> Tensor:
        """Return one part of a fresh state."""
        dtype = torch.promote_types(self.weight_hh.dtype, torch.float32)
        return self.weight_hh.new_zeros(batch, self.inner, dtype=dtype)

    def _run(
        self, u_BTI: Tensor, before: State, weights: list[Tensor], valid_B: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Outputs, and the parts of the state (1, B, I) after the last token, or the last valid.

        Packed rows have at least one token; where none counts, the caller keeps the old state.
        """
        # Behind its weights a kernel takes biases, layers, dropout, whether there will be a
        # backward pass (cuDNN calls that training) and whether there are two directions.
        settings = (True, 1, 0.0, torch.is_grad_enabled(), False)
        hidden: Any = [part_BI[None] for part_BI in before]
        if valid_B is None:
            hidden = hidden if len(hidden) > 1 else hidden[0]
            y_BTI, *after = self.kernel(u_BTI, hidden, weights, *settings, True)
            return y_BTI, after
        counts_B = valid_B.clamp(min=1).cpu()
        packed = pack_padded_sequence(u_BTI, counts_B, batch_first=True, enforce_sorted=False)
        assert packed.sorted_indices is not None and packed.unsorted_indices is not None
        hidden = [part_1BI.index_select(1, packed.sorted_indices) for part_1BI in hidden]
        hidden = hidden if len(hidden) > 1 else hidden[0]
        y, *after = self.kernel(packed.data, packed.batch_sizes, hidden, weights, *settings)
        y_BTI, _ = pad_packed_sequence(
            packed._replace(data=y), batch_first=True, total_length=u_BTI.shape[1]
        )
        return y_BTI, [part_1BI.index_select(1, packed.unsorted_indices) for part_1BI in after]
