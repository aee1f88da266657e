"""F of a retrofitted model: an explicit stack whose stream takes the last iterate in by a gate.

    F(z, [u | x]) = stack(x + γ ⊙ z, u)

With γ = 0 and without an injection F does not look at z, so that its fixed point is the explicit
model's output, whatever the solver, window or tolerance. Read `equilibrium.py` next.
"""

import torch
from torch import Tensor, nn

from equilm.nn.mixer import Mixer, State


class Gated(Mixer):
    """A mixer on x + γ ⊙ z, with x beside the injection u.

    Args:
        stack: What runs on the stream; it takes u.
        width: D, of x, z and γ.
    """

    def __init__(self, stack: Mixer, width: int) -> None:
        super().__init__()
        self.stack, self.width = stack, width
        self.gate = nn.Parameter(torch.empty(width))
        self.inject_width = stack.inject_width + width
        self.takes_starts = stack.takes_starts
        self.recordable, self.spares_states = stack.recordable, stack.spares_states

    def initialise_own(self, generator: torch.Generator) -> None:
        """γ = 0: whatever the stack is, z first has no part in it."""
        with torch.no_grad():
            self.gate.zero_()

    def init_state(self, batch: int, capacity: int) -> State:
        """The state of the stack."""
        return self.stack.init_state(batch, capacity)

    def forward(
        self,
        x_BTD: Tensor,
        state: State = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
        starts_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """See `Mixer`; here x is the iterate z, and inject is [u | x]."""
        r_BTD, u_BTE = self._entered(x_BTD, inject_BTE)
        starts = () if starts_BT is None else (starts_BT,)
        result: tuple[Tensor, State] = self.stack(r_BTD, state, u_BTE, valid_B, *starts)
        return result

    def peek(self, x_BTD: Tensor, state: State, inject_BTE: Tensor | None) -> Tensor:
        """See `Mixer`."""
        r_BTD, u_BTE = self._entered(x_BTD, inject_BTE)
        return self.stack.peek(r_BTD, state, u_BTE)

    def advance_some(
        self, x_B1D: Tensor, state: State, inject_B1E: Tensor | None, wanted_B: Tensor
    ) -> tuple[Tensor, State]:
        """See `Mixer`."""
        r_B1D, u_B1E = self._entered(x_B1D, inject_B1E)
        return self.stack.advance_some(r_B1D, state, u_B1E, wanted_B)

    def flops_per_token(self, length: int) -> float:
        """The stack's, and the gate."""
        return self.stack.flops_per_token(length) + 2.0 * self.width

    def _entered(self, z_BTD: Tensor, inject_BTE: Tensor | None) -> tuple[Tensor, Tensor]:
        assert inject_BTE is not None, "the stream begins with what is injected"
        u_BTE, x_BTD = inject_BTE.split([self.stack.inject_width, self.width], dim=-1)
        device = u_BTE.device.type
        if torch.is_autocast_enabled(device):
            # The type that a projection gave it, before it stood beside x.
            u_BTE = u_BTE.to(torch.get_autocast_dtype(device))
        # Kernels want rows that lie together.
        return torch.addcmul(x_BTD, self.gate, z_BTD), u_BTE.contiguous()
