"""Several `Linear`s with one input as one product. Read `attention.py` and `mlp.py` next."""

import torch
import torch.nn.functional as F
from torch import Tensor

from equilm.nn.linear import Linear, Prepared
from equilm.ops import fp8
from equilm.ops.fp8 import Scaled, quantise


class Joined(Prepared):
    """y = [W_1 x | W_2 x | …], the effective weights joined once a forward, as they are folded.

    The parameters stay those of the parts, under their names. The owner registers the parts before
    this, so that they are folded before they are joined.

    Args:
        parts: Without biases; all of the same number of inputs.
        tile: On a GPU each weight is padded with zeros to a multiple of this: fast products want
            rows that start at 16 bytes, and kernels whole vectors.
        dim: What is padded: 0 the outputs, 1 the inputs.
        after_norm: Whether x comes from an RMS norm, so that it may come in 8 bits.
    """

    def __init__(
        self, *parts: Linear, tile: int = 1, dim: int = 0, after_norm: bool = False
    ) -> None:
        super().__init__()
        # In a tuple they are no children of this module, and appear once in a state dict.
        self._parts, self.tile, self.dim, self.after_norm = parts, tile, dim, after_norm
        self._weight: Tensor | None = None
        self._low: Scaled | None = None

    def effective(self) -> Tensor:
        """Return the joined weight, the one made by `prepared` if inside it."""
        return self._join() if self._weight is None else self._weight

    def forward(self, x_BTD: Tensor | Scaled) -> Tensor:
        """Return y (…, outputs of all parts)."""
        if isinstance(x_BTD, Scaled):
            weight = self.effective()
            assert self._low is not None
            return fp8.linear(x_BTD, self._low, len(weight), weight.dtype)
        tokens = x_BTD.numel() // x_BTD.shape[-1]
        if self._weight is None and not x_BTD.is_cuda and tokens < x_BTD.shape[-1]:
            # So few outputs are joined sooner than the weights.
            return torch.cat([part(x_BTD) for part in self._parts], dim=-1)
        weight = self.effective()
        return F.linear(x_BTD.to(weight.dtype), weight)

    def is_prepared(self) -> bool:
        """As for the parts: joined without a graph, it is stale once gradients are wanted."""
        return self._weight is not None and (
            self._weight.requires_grad or not torch.is_grad_enabled()
        )

    def prepare(self) -> None:
        """Join."""
        self._weight = self._join()

    def release(self) -> None:
        """Forget what was joined."""
        self._weight = None

    def made(self) -> Tensor | None:
        """The joined weight."""
        return self._weight

    def make_do(self, made: Tensor) -> None:
        """Take it."""
        self._weight = made

    def lower(self) -> None:
        """Quantise."""
        if self.after_norm:
            self._low = quantise(self.effective().detach())

    def lift(self) -> None:
        """Forget what was quantised."""
        self._low = None

    def _join(self) -> Tensor:
        weights = [self._padded(part.effective()) for part in self._parts]
        return torch.cat(weights) if len(weights) > 1 else weights[0]

    def _padded(self, weight: Tensor) -> Tensor:
        missing = -weight.shape[self.dim] % self.tile if weight.is_cuda else 0
        if missing == 0:
            return weight
        return F.pad(weight, (0, 0, 0, missing) if self.dim == 0 else (0, missing))
