"""A long filter that a small network of sines writes down, tap by tap, under a decaying window.

    K_i(t) = exp(−α_i t / L) · MLP([t / L | cos 2πft / L | −sin 2πft / L])_i,   t < L

Its taps do not depend on the tokens, so that they are made once a forward. Read `hyena.py` next.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilm.nn.linear import Prepared

DECAYS = (math.log(100) / 1.5, math.log(100) / 0.3)  # α of the first and of the last channel


class ImplicitFilter(Prepared):
    """K (I, L) as a function of the position.

    Sines of a high frequency tell small changes of a weight: with weights that were rounded to half
    precision it is another filter. Autocast leaves it in float32.

    Args:
        channels: I.
        length: L.
        features: Of a position, odd: itself, and (features − 1) / 2 frequencies.
        hidden: Width of the network, which has three hidden layers.

    Source: Poli et al. 2023, arXiv 2302.10866, section 3.3; decays as in the authors' code.
    """

    def __init__(self, channels: int, length: int, *, features: int, hidden: int) -> None:
        super().__init__()
        self.channels, self.length, self.bands = channels, length, (features - 1) // 2
        widths = [features, hidden, hidden, hidden, channels]
        self.weights = nn.ParameterList(
            torch.empty(outputs, inputs) for inputs, outputs in pairwise(widths)
        )
        self.biases = nn.ParameterList(torch.empty(hidden) for _ in widths[1:-1])
        self.frequency = nn.Parameter(torch.empty(hidden))
        self._taps: Tensor | None = None

    def initialise(self, frequency: float, generator: torch.Generator) -> None:
        """Draw weights as projections', of sines of this frequency; biases are 0."""
        for weight in self.weights:
            drawn = 2 * torch.rand(weight.shape, generator=generator) - 1
            weight.copy_(drawn / math.sqrt(weight.shape[1]))
        for bias in self.biases:
            bias.zero_()
        self.frequency.fill_(frequency)

    def effective(self) -> Tensor:
        """Return the taps (I, L) in float32 or wider, those made by `prepared` if inside it."""
        return self._make() if self._taps is None else self._taps

    def is_prepared(self) -> bool:
        """Taps made without a graph are stale once gradients are wanted."""
        return self._taps is not None and (self._taps.requires_grad or not torch.is_grad_enabled())

    def prepare(self) -> None:
        """Make the taps."""
        self._taps = self._make()

    def release(self) -> None:
        """Forget them."""
        self._taps = None

    def _make(self) -> Tensor:
        wide = torch.promote_types(self.frequency.dtype, torch.float32)
        device = self.frequency.device
        *inner, last = (weight.to(wide) for weight in self.weights)
        # Half precision would not tell neighbouring positions apart.
        with torch.autocast(device.type, enabled=False):
            time_L1 = torch.arange(self.length, device=device, dtype=wide)[:, None] / self.length
            band_F = torch.arange(self.bands, device=device, dtype=wide)
            angle_LF = 2 * math.pi * time_L1 * band_F
            h_LU = torch.cat([time_L1, angle_LF.cos(), -angle_LF.sin()], dim=1)
            for weight, bias in zip(inner, self.biases, strict=True):
                h_LU = torch.sin(self.frequency * F.linear(h_LU, weight, bias.to(wide)))
            decay_I = torch.linspace(*DECAYS, self.channels, device=device, dtype=wide)
            return (F.linear(h_LU, last) * torch.exp(-time_L1 * decay_I)).mT
