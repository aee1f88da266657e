"""Linear and depthwise convolution weights, with weight norm folded once a forward; dropout masks.

`with prepared(module):` makes everything that is constant during one forward (effective weights,
their cast to the autocast type, dropout masks) once; inside it a stack is one fixed function that
may be evaluated many times. Read `block.py` next.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from equilm.ops import fp8
from equilm.ops.fp8 import Scaled, quantise


class Prepared(nn.Module, ABC):
    """Something that has constants to make before a forward."""

    @abstractmethod
    def is_prepared(self) -> bool:
        """Return whether they are made, and not stale."""

    @abstractmethod
    def prepare(self) -> None:
        """Make them."""

    @abstractmethod
    def release(self) -> None:
        """Forget them."""

    def made(self) -> Tensor | None:
        """Return what was made, if it is worth keeping for `make_do`."""
        return None

    def make_do(self, made: Tensor) -> None:
        """Take what was made before instead of making it."""
        raise NotImplementedError

    def lower(self) -> None:
        """Make what evaluations in 8 bits need beside, from what was prepared."""

    def lift(self) -> None:
        """Forget it."""


@contextmanager
def prepared(module: nn.Module, kept: dict[Prepared, Tensor] | None = None) -> Iterator[None]:
    """Hold the constants of one forward for the duration of the block; blocks may nest.

    Args:
        module: Its parts are prepared, but for those that are.
        kept: What an earlier block left there is taken again, and what is made is left there: who
            gives it knows that the parameters are what they were.
    """
    parts = [m for m in module.modules() if isinstance(m, Prepared) and not m.is_prepared()]
    kept = {} if kept is None else kept
    for part in parts:
        if part in kept:
            part.make_do(kept[part])
        else:
            part.prepare()
        made = part.made()
        if made is not None:
            kept[part] = made
    try:
        yield
    finally:
        for part in parts:
            part.release()


def constants(module: nn.Module) -> list[Tensor]:
    """Return what is made of a module now, for one who goes on reading it; nothing outside."""
    parts = [part for part in module.modules() if isinstance(part, Prepared)]
    return [made for part in parts if (made := part.made()) is not None]


@contextmanager
def lowered(module: nn.Module) -> Iterator[None]:
    """Let evaluations without gradient multiply in 8 bits where they can; inside `prepared`.

    Raises:
        ValueError: If a width does not allow it.
    """
    parts = [m for m in module.modules() if isinstance(m, Prepared)]
    try:
        for part in parts:
            part.lower()
        yield
    finally:
        for part in parts:
            part.lift()


class Weight(Prepared):
    """A weight, plain or as w = g · v / ‖v‖ for each output row.

    Args:
        shape: (out, …).
        weight_norm: Whether to learn g and v instead of w.

    Source: Salimans and Kingma 2016, arXiv 1602.07868.
    """

    def __init__(self, shape: tuple[int, ...], *, weight_norm: bool) -> None:
        super().__init__()
        self.weight_norm = weight_norm
        self._folded: Tensor | None = None
        # What somebody adds to the weight, such as LoRA (`equilm/hf/lora.py`).
        self.added: Callable[[], Tensor] | None = None
        if weight_norm:
            self.weight_g = nn.Parameter(torch.empty(shape[0], *[1] * (len(shape) - 1)))
            self.weight_v = nn.Parameter(torch.empty(shape))
        else:
            self.weight = nn.Parameter(torch.empty(shape))

    @torch.no_grad()
    def assign(self, weight: Tensor) -> None:
        """Set the effective weight."""
        if self.weight_norm:
            self.weight_v.copy_(weight)
            self.weight_g.copy_(_row_norm(self.weight_v))
        else:
            self.weight.copy_(weight)

    def effective(self) -> Tensor:
        """Return w (out, …), folded if inside `prepared`."""
        return self.fold() if self._folded is None else self._folded

    def fold(self) -> Tensor:
        """Return w anew, in the type of autocast where that is on."""
        if self.weight_norm:
            weight = self.weight_v * (self.weight_g / _row_norm(self.weight_v))
        else:
            weight = self.weight
        if self.added is not None:
            weight = weight + self.added()
        device = weight.device.type
        if torch.is_autocast_enabled(device):
            weight = weight.to(torch.get_autocast_dtype(device))
        return weight

    def is_prepared(self) -> bool:
        """A weight folded without a graph is stale once gradients are wanted."""
        return self._folded is not None and (
            self._folded.requires_grad or not torch.is_grad_enabled()
        )

    def prepare(self) -> None:
        """Fold and cast."""
        weight = self.fold()
        # As an alias, because a module would take a parameter for one more of its own.
        self._folded = weight.view_as(weight)

    def release(self) -> None:
        """Forget what was folded."""
        self._folded = None

    def made(self) -> Tensor | None:
        """The folded weight."""
        return self._folded

    def make_do(self, made: Tensor) -> None:
        """Take it."""
        self._folded = made


class Linear(Weight):
    """y = W x (+ bias).

    Args:
        inputs: Width of x.
        outputs: Width of y.
        bias: Whether there is one.
        weight_norm: Whether W is kept as g · v / ‖v‖.
        after_norm: Whether x comes from an RMS norm, so that it may come in 8 bits.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = False,
        weight_norm: bool = False,
        after_norm: bool = False,
    ) -> None:
        super().__init__((outputs, inputs), weight_norm=weight_norm)
        self.inputs, self.outputs, self.after_norm = inputs, outputs, after_norm
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self._low: Scaled | None = None
        # The folded weight in 8 bits by rows, from whoever rounded it to that (`narrow`).
        self.narrowed: Scaled | None = None

    def narrow(self, narrowed: Scaled, widened: Tensor) -> None:
        """Take a rounded weight, and what it is in full, for the folded one; inside `prepared`."""
        self.make_do(widened)
        self.narrowed = narrowed

    def release(self) -> None:
        """Forget what was folded and rounded."""
        super().release()
        self.narrowed = None

    def lower(self) -> None:
        """Quantise."""
        if self.after_norm:
            self._low = quantise(self.effective().detach())

    def lift(self) -> None:
        """Forget what was quantised."""
        self._low = None

    def forward(self, x_BTD: Tensor | Scaled) -> Tensor:
        """Return y (…, outputs)."""
        weight = self.effective()
        if isinstance(x_BTD, Scaled):
            assert self._low is not None and self.bias is None
            return fp8.linear(x_BTD, self._low, self.outputs, weight.dtype)
        return nn.functional.linear(x_BTD.to(weight.dtype), weight, self.bias)


class DepthwiseTaps(Weight):
    """The taps (C, 1, W) and bias (C,) of a causal depthwise convolution."""

    def __init__(self, channels: int, width: int, *, weight_norm: bool = False) -> None:
        super().__init__((channels, 1, width), weight_norm=weight_norm)
        self.bias = nn.Parameter(torch.empty(channels))


class VariationalDropout(Prepared):
    """One Bernoulli mask a row, shared by all tokens and all evaluations of a forward.

    Args:
        rate: Share of channels dropped, in [0, 1).

    Source: Gal and Ghahramani 2016, arXiv 1512.05287. Draws from torch's default generator, which
    the trainer seeds from the step.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"dropout: expected a number in [0, 1), got {rate}")
        self.rate = rate
        self._held = False
        self._mask_B1D: Tensor | None = None

    def forward(self, y_BTD: Tensor) -> Tensor:
        """Return y with the channels of the mask set to zero and the others scaled up."""
        if not self.training or self.rate == 0:
            return y_BTD
        mask_B1D = self._mask_B1D
        if mask_B1D is None:
            keep_B1D = torch.rand_like(y_BTD[:, :1], dtype=torch.float32) >= self.rate
            mask_B1D = keep_B1D / (1 - self.rate)
            if self._held:
                self._mask_B1D = mask_B1D
        return y_BTD * mask_B1D.to(y_BTD.dtype)

    def is_prepared(self) -> bool:
        return self._held

    def prepare(self) -> None:
        """Keep the next mask drawn."""
        self._held = True

    def release(self) -> None:
        """Forget the mask."""
        self._held, self._mask_B1D = False, None


def _row_norm(v: Tensor) -> Tensor:
    return v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))
