"""Norm, mixer, add; norm, MLP, add; and a stack of these. Residual stream in float32.

A stack is a mixer, and the F of an equilibrium. Read `equilibrium.py` next.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from equilm.nn.experts import Experts
from equilm.nn.mixer import Mixer, State
from equilm.nn.mlp import GatedMLP
from equilm.nn.norm import RMSNorm


class Block(nn.Module):
    """r ← r + Mixer(RMSNorm(r), inject); then, with an MLP, r ← r + MLP(RMSNorm(r)).

    Args:
        mixer: A `Mixer`.
        mlp: A gated MLP, a mixture of experts, or nothing.
        width: D.
        norm_eps: Added to the mean square in the norms.
    """

    def __init__(
        self,
        mixer: Mixer,
        mlp: GatedMLP | Experts | None,
        width: int,
        *,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm = RMSNorm(width, eps=norm_eps, before_projection=mixer.takes_scaled)
        self.mixer = mixer
        self.norm2 = None
        if mlp is not None:
            self.norm2 = RMSNorm(width, eps=norm_eps, before_projection=mlp.takes_scaled)
        self.mlp = mlp

    def init_state(self, batch: int, capacity: int) -> State:
        """The mixer's state; with a mixture of experts a pair of it and what that counts."""
        state = self.mixer.init_state(batch, capacity)
        return (state, self.mlp.init_state(batch)) if isinstance(self.mlp, Experts) else state

    def forward(
        self,
        r_BTD: Tensor,
        y_BTD: Tensor | None,
        state: State,
        inject_BTE: Tensor | None,
        valid_B: Tensor | None,
        advance: bool | Tensor = True,
        starts_BT: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, State]:
        """Add the last branch y to the stream r, run this block's branches.

        The last branch is left unadded, so that one pass over the stream adds it and takes the
        next norm. Returns the stream, the branch still to be added, and the next state, which
        may be anything unless `advance`, or for rows where that is false.
        """
        whole = counted = None
        if isinstance(self.mlp, Experts) and state is not None:
            state, counted = state
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
            if isinstance(self.mlp, Experts):
                y_BTD, counted = self.mlp(a_BTD, counted, valid_B)
                state = state, counted
            else:
                y_BTD = self.mlp(a_BTD)
        return r_BTD, y_BTD, state


class Stack(Mixer):
    """RMSNorm(Block_L(… Block_1(x))): a mixer made of mixers, and one evaluation of F.

    Args:
        blocks: At least one, each with its own parameters.
        width: D.
        order: Which block stands at each place, some perhaps at several; `None` means each at one.
        parts: Which part of the injection each block takes; `None` means that all take the whole.
        norm_eps: Added to the mean square in the last norm.
    """

    def __init__(
        self,
        blocks: list[Block],
        width: int,
        *,
        order: Sequence[int] | None = None,
        parts: Sequence[int] | None = None,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)
        self.order = tuple(range(len(blocks)) if order is None else order)
        self.norm_f = RMSNorm(width, eps=norm_eps)
        self.parts = (0,) * len(blocks) if parts is None else tuple(parts)
        widths = dict(zip(self.parts, (block.mixer.inject_width for block in blocks), strict=True))
        self.widths = [widths[part] for part in sorted(widths)]
        self.inject_width = sum(self.widths)
        self.takes_starts = all(block.mixer.takes_starts for block in blocks)
        self.recordable = all(block.mixer.recordable for block in blocks)
        self.spares_states = all(block.mixer.spares_states for block in blocks)
        # Assigned from outside, for one forward, by whoever wants blocks called another way.
        self.call: Callable[..., tuple[Tensor, Tensor, State]] = _plainly

    @property
    def blocks(self) -> list[Block]:
        """The blocks from first to last, a shared one at each of its places."""
        blocks = cast(list[Block], list(self.layers))
        return [blocks[number] for number in self.order]

    def init_state(self, batch: int, capacity: int) -> State:
        """A tuple of the blocks' states, one for each place."""
        return tuple(block.init_state(batch, capacity) for block in self.blocks)

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

    def advance_some(
        self, x_B1D: Tensor, state: State, inject_B1E: Tensor | None, wanted_B: Tensor
    ) -> tuple[Tensor, State]:
        """See `Mixer`."""
        return self._run(x_B1D, state, inject_B1E, None, None, advance=wanted_B)

    def _run(
        self,
        x_BTD: Tensor,
        state: State,
        inject_BTE: Tensor | None,
        valid_B: Tensor | None,
        starts_BT: Tensor | None,
        *,
        advance: bool | Tensor,
    ) -> tuple[Tensor, State]:
        r_BTD = x_BTD.float() if x_BTD.dtype.itemsize < 4 else x_BTD
        states = state if state is not None else (None,) * len(self.order)
        y_BTD, next_states = None, []
        injects = self._injects(inject_BTE)
        for block, before, inject in zip(self.blocks, states, injects, strict=True):
            r_BTD, y_BTD, after = self.call(
                block, r_BTD, y_BTD, before, inject, valid_B, advance, starts_BT
            )
            next_states.append(after)
        return self.norm_f(r_BTD, y_BTD), tuple(next_states)

    def _injects(self, inject_BTE: Tensor | None) -> list[Tensor | None]:
        """What each place takes of the injection."""
        if inject_BTE is None or len(self.widths) == 1:
            return [inject_BTE] * len(self.order)
        # Kernels want rows that lie together.
        parts = [part.contiguous() for part in inject_BTE.split(self.widths, dim=-1)]
        return [parts[self.parts[number]] for number in self.order]

    def balance_loss(self, before: State, after: State) -> Tensor:
        """Return the sum of the experts' balance losses, a scalar; of a stack that has some.

        Args:
            before: The state before the tokens in question; `None` means a fresh one.
            after: The state after them.
        """
        befores = before if before is not None else (None,) * len(self.order)
        found = [
            block.mlp.balance_loss(old and old[1], new[1])
            for block, old, new in zip(self.blocks, befores, after, strict=True)
            if isinstance(block.mlp, Experts)
        ]
        return torch.stack(found).sum()

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
