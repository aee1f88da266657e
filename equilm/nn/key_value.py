"""What mixers share that keep values under keys: a memory S (N × P) a head, written and read.

    [q | k | v | gate | …] = W_in x + inject,   y = remember(q, k, v, …)
    W_out (norm(y) · SiLU(gate)), the norm over each head

The arithmetic of a memory is in `equilm/ops/linear_attention.py`. Read `linear_attention.py`,
`retnet.py`, `gla.py` and `hgrn2.py` next; `deltanet.py` and `rwkv6.py` share its last line.
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilm.nn.linear import Linear, VariationalDropout
from equilm.nn.mixer import Mixer


class Memory(NamedTuple):
    """What a key holds, in float32."""

    memory_BHNP: Tensor


class HeadOutput(nn.Module):
    """W_out (norm(y) · SiLU(gate)).

    Args:
        norm: Of the last dimension of y (B, T, H, P); `Identity` for none.
        inner: I = H · P.
        width: D.
        weight_norm: Whether the projection carries weight norm.
        dropout: Rate of the variational dropout on the output.
    """

    def __init__(
        self, norm: nn.Module, inner: int, width: int, *, weight_norm: bool, dropout: float
    ) -> None:
        super().__init__()
        self.norm = norm
        self.out_proj = Linear(inner, width, weight_norm=weight_norm)
        self.dropout = VariationalDropout(dropout)

    def forward(self, y_BTHP: Tensor, gate_BTI: Tensor | None = None) -> Tensor:
        """Return (B, T, D); without a gate nothing multiplies."""
        y_BTI: Tensor = self.norm(y_BTHP).flatten(2)
        if gate_BTI is not None:
            y_BTI = y_BTI * F.silu(gate_BTI)
        y_BTD: Tensor = self.dropout(self.out_proj(y_BTI))
        return y_BTD


class KeyValue(Mixer):
    """A memory between two projections.

    Args:
        width: D.
        heads: H.
        keys: N, width of a head's queries and keys.
        values: P, width of a head's values.
        norm: Of a head's output.
        gated: Whether a gate multiplies it.
        others: Widths of what else is projected.
        weight_norm: Whether the projections in and out carry weight norm.
        dropout: Rate of the variational dropout on the output.
    """

    takes_starts = True

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        keys: int,
        values: int,
        norm: nn.Module,
        gated: bool,
        others: tuple[int, ...] = (),
        weight_norm: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.width, self.heads, self.keys, self.values = width, heads, keys, values
        inner = heads * values
        self.sizes = [heads * keys, heads * keys, inner, inner if gated else 0, *others]
        self.inject_width = sum(self.sizes)
        self.in_proj = Linear(width, self.inject_width, weight_norm=weight_norm)
        self.output = HeadOutput(norm, inner, width, weight_norm=weight_norm, dropout=dropout)
        self.gated, self.columns = gated, values

    @abstractmethod
    def remember(
        self,
        q_BTHN: Tensor,
        k_BTHN: Tensor,
        v_BTHP: Tensor,
        others: list[Tensor],
        memory_BHNP: Tensor | None,
        valid_B: Tensor | None,
        starts_BT: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return y_BTHP and the memory after the tokens that count; `None` means zeros."""

    def init_state(self, batch: int, capacity: int) -> Memory:
        """Zeros; the state does not grow with `capacity`."""
        like = next(self.parameters())
        dtype = torch.promote_types(like.dtype, torch.float32)
        return Memory(like.new_zeros(batch, self.heads, self.keys, self.columns, dtype=dtype))

    def forward(
        self,
        x_BTD: Tensor,
        state: Memory | None = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
        starts_BT: Tensor | None = None,
    ) -> tuple[Tensor, Memory]:
        """See `Mixer`."""
        projected_BTE = self.in_proj(x_BTD)
        if inject_BTE is not None:
            projected_BTE = projected_BTE + inject_BTE
        q_BTI, k_BTI, v_BTI, gate_BTI, *others = projected_BTE.split(self.sizes, dim=-1)
        y_BTHP, memory_BHNP = self.remember(
            q_BTI.unflatten(-1, (self.heads, -1)),
            k_BTI.unflatten(-1, (self.heads, -1)),
            v_BTI.unflatten(-1, (self.heads, -1)),
            others,
            None if state is None else state.memory_BHNP,
            valid_B,
            starts_BT,
        )
        return self.output(y_BTHP, gate_BTI if self.gated else None), Memory(memory_BHNP)

    def flops_per_token(self, length: int) -> float:
        """The projections, and one decay, one update and one read of the memory."""
        projections = self.width * (self.inject_width + self.heads * self.values)
        return 2.0 * (projections + 3 * self.heads * self.keys * self.values)


def split_evenly(name: str, width: int, heads: int) -> int:
    """Return width / heads.

    Raises:
        ValueError: If it is no integer ≥ 1.
    """
    if heads < 1 or width % heads:
        raise ValueError(f"mixer.heads: expected a divisor of {name} = {width}, got {heads}")
    return width // heads
