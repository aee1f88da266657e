"""What mixers by attention share: projections to heads of queries, keys and values, and one back.

What a token may see, and what is kept of it, is theirs. Read `attention.py` next.
"""

from dataclasses import dataclass

from torch import Tensor

from equilm.nn.joined import Joined
from equilm.nn.linear import Linear, VariationalDropout
from equilm.nn.mixer import Mixer


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """Sizes that all these mixers have; the defaults are the published ones.

    Args:
        heads: H.
        kv_heads: Heads of keys and values, a divisor of H; `None` means H.
        theta: Base of the rotary frequencies.
    """

    heads: int = 12
    kv_heads: int | None = None
    theta: float = 500_000.0

    def __post_init__(self) -> None:
        for name in ("heads", "kv_heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {value}")
        if not self.theta > 0:
            raise ValueError(f"theta: expected a number > 0, got {self.theta}")


class Heads(Mixer):
    """[q | k | v] = W x + inject in heads, and a projection of their outputs.

    Args:
        config: Sizes.
        width: D.
        weight_norm: Whether projections carry weight norm.
        dropout: Rate of the variational dropout on the output.

    Raises:
        ValueError: If the heads do not divide evenly.
    """

    takes_scaled = True
    takes_starts = True

    def __init__(
        self, config: HeadsConfig, width: int, *, weight_norm: bool, dropout: float
    ) -> None:
        super().__init__()
        self.config, self.width, self.heads = config, width, config.heads
        self.kv_heads = config.kv_heads or config.heads
        if width % (2 * self.heads):
            raise ValueError(
                f"mixer.heads: expected a divisor of width / 2 = {width / 2:g}, got {self.heads}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"mixer.kv_heads: expected a divisor of {self.heads} heads, got {self.kv_heads}"
            )
        self.head_width = width // self.heads
        kv_width = self.kv_heads * self.head_width
        self.inject_width = width + 2 * kv_width
        self.wq = Linear(width, width, weight_norm=weight_norm)
        self.wk = Linear(width, kv_width, weight_norm=weight_norm)
        self.wv = Linear(width, kv_width, weight_norm=weight_norm)
        self.qkv = Joined(self.wq, self.wk, self.wv, after_norm=True)
        self.out_proj = Linear(width, width, weight_norm=weight_norm)
        self.dropout = VariationalDropout(dropout)


def lengths(length_B: Tensor) -> Tensor | int:
    """Return one number for all rows if there is one, and to know it the host need not wait."""
    if length_B.is_cuda:
        return length_B
    found = set(length_B.tolist())
    return found.pop() if len(found) == 1 else length_B
