"""Norm, mixer, add; norm, MLP, add; and a stack of these. Residual stream in float32.

A stack is a mixer, and the F of an equilibrium. Read `equilibrium.py` next.
"""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from equilm.nn.mixer import Mixer, State
from equilm.nn.mlp import GatedMLP
from equilm.nn.norm import RMSNorm


class Block(nn.Module):
    """r ← r + Mixer(RMSNorm(r), inject); then, with an MLP, r ← r + MLP(RMSNorm(r)).

    Args:
        mixer: A `Mixer`.
        mlp: A gated MLP, or nothing.
        width: D.
        norm_eps: Added to the mean square in the norms.
    """

    def __init__(
        self, mixer: Mixer, mlp: GatedMLP | None, width: int, *, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.norm = RMSNorm(width, eps=norm_eps, before_projection=mixer.takes_scaled)
        self.mixer = mixer
        self.norm2 = None
        if mlp is not None:
            self.norm2 = RMSNorm(width, eps=norm_eps, before_projection=mlp.takes_scaled)
        self.mlp = mlp

    def forward(
        self,
        r_BTD: Tensor,
        y_BTD: Tensor | None,
        state: State,
        inject_BTE: Tensor | None,
        valid_B: Tensor | None,
        advance: bool = True,
        starts_BT: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, State]:
        """Add the last branch y to the stream r, run this block's branches.

        The last branch is left unadded, so that one pass over the stream adds it and takes the
        next norm. Returns the stream, the branch still to be added, and the mixer's next state,
        which may be anything unless `advance`.
        """
        whole = None
        if r_BTD.shape[1] == 1 and valid_B is None and starts_BT is None:
            whole = self.mixer.token(self.norm, r_BTD, y_BTD, state, inject_BTE, advance)
        if whole is not None:
            r_BTD, y_BTD, state = whole
        else:
            r_BTD, a_BTD = self.norm.after(r_BTD, y_BTD)
            starts = () if starts_BT is None else (starts_BT,)
            y_BTD, state = self.mixer(a_BTD, state, inject_BTE, valid_B, *starts)
        if self.mlp is not None and self.norm2 is not None:
            r_BTD, a_BTD = self.norm2.after(r_BTD, y_BTD)
            y_BTD = self.mlp(a_BTD)
        return r_BTD, y_BTD, state


class Stack(Mixer):
    """RMSNorm(Block_L(… Block_1(x))): a mixer made of mixers, and one evaluation of F.

    Args:
        blocks: At least one; all take the same injection.
        width: D.
        norm_eps: Added to the mean square in the last norm.
    """

    def __init__(self, blocks: list[Block], width: int, *, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)
        self.norm_f = RMSNorm(width, eps=norm_eps)
        self.inject_width = blocks[0].mixer.inject_width
        self.takes_starts = all(block.mixer.takes_starts for block in blocks)
        # Assigned from outside, for one forward, by whoever wants blocks called another way.
        self.call: Callable[..., tuple[Tensor, Tensor, State]] = _plainly

    @property
    def blocks(self) -> list[Block]:
        """The blocks from first to last."""
        return cast(list[Block], list(self.layers))

    def init_state(self, batch: int, capacity: int) -> State:
        """A tuple of the mixers' states."""
        return tuple(block.mixer.init_state(batch, capacity) for block in self.blocks)

    def forward(
        self,
        x_BTD: Tensor,
        state: State = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
        starts_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """See `Mixer`."""
        return self._run(x_BTD, state, inject_BTE, valid_B, starts_BT, advance=True)

    def peek(self, x_BTD: Tensor, state: State, inject_BTE: Tensor | None) -> Tensor:
        """Return the outputs alone: where there are kernels for it, no state is written."""
        return self._run(x_BTD, state, inject_BTE, None, None, advance=False)[0]

    def _run(
        self,
        x_BTD: Tensor,
        state: State,
        inject_BTE: Tensor | None,
        valid_B: Tensor | None,
        starts_BT: Tensor | None,
        *,
        advance: bool,
    ) -> tuple[Tensor, State]:
        r_BTD = x_BTD.float() if x_BTD.dtype.itemsize < 4 else x_BTD
        states = state if state is not None else (None,) * len(self.layers)
        y_BTD, next_states = None, []
        for block, before in zip(self.blocks, states, strict=True):
            r_BTD, y_BTD, after = self.call(
                block, r_BTD, y_BTD, before, inject_BTE, valid_B, advance, starts_BT
            )
            next_states.append(after)
        return self.norm_f(r_BTD, y_BTD), tuple(next_states)

    def flops_per_token(self, length: int) -> float:
        """The sum over mixers and MLPs."""
        total = 0.0
        for block in self.blocks:
            total += block.mixer.flops_per_token(length)
            total += block.mlp.flops_per_token() if block.mlp is not None else 0.0
        return total


def _plainly(block: Block, *arguments: Any) -> tuple[Tensor, Tensor, State]:
    result: tuple[Tensor, Tensor, State] = block(*arguments)
    return result
