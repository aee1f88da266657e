"""The sliding window over a long chain: solve W positions at once, retire the settled prefix.

By causality a settled prefix is final, so its state is kept and the window moves on; W = 1 is the
sequential mode, W = T the simultaneous one. Every row moves at its own pace and nothing in its
answer depends on the others. Read `equilm/nn/equilibrium.py` next.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from equilm import tree
from equilm.solve.iterate import Progress, Solution, Solve, Status, begin, sweep

# (z (B, W, N), inject (B, W, E), state, valid (B,) or None) → (F(z), state after `valid` positions)
Step = Callable[[Tensor, Tensor, Any, Tensor | None], tuple[Tensor, Any]]


def slide(
    step: Step,
    inject: Tensor,
    state: tree.Tree,
    *,
    size: int,
    window: int,
    solve: Solve,
    valid: Tensor | None = None,
    guess: Tensor | None = None,
) -> Solution:
    """Solve a chain of T positions, never more than `window` of them at a time.

    Args:
        step: One evaluation of F on a window; it must not change the state it is given.
        inject: (B, T, E) what F depends on at each position.
        state: What the chain carries into its first position, row first.
        size: N, the length of one unknown.
        window: W ≥ 1.
        solve: `max_steps` bounds the evaluations of a position after all before it settled.
        valid: (B,) length of each row's chain; `None` means T.
        guess: (B, T, N) where each position begins; `None` means at zero.

    Returns:
        A `Solution` for (B, T); positions past `valid` are zero. Its `last` is F(value) with the
        state after the last valid position. `sweeps` counts dependent evaluations.
    """
    window = min(window, inject.shape[1])
    return _Slider(step, inject, state, size, window, solve, valid, guess).run()


class _Slider:
    """The loop of `slide` with its local variables."""

    def __init__(
        self,
        step: Step,
        inject: Tensor,
        state: tree.Tree,
        size: int,
        window: int,
        solve: Solve,
        valid: Tensor | None,
        guess: Tensor | None,
    ) -> None:
        rows, length = inject.shape[:2]
        device = inject.device
        self.step, self.solve, self.state, self.window = step, solve, state, window
        # W positions past the end, so that a window may hang over.
        self.chain = torch.cat([inject, inject.new_zeros(rows, window, inject.shape[2])], dim=1)
        self.length = length
        self.limit = torch.full((rows,), length, device=device) if valid is None else valid
        self.start = torch.zeros(rows, dtype=torch.int64, device=device)
        self.offsets = torch.arange(window, device=device)
        self.inject = self._view(self.chain, self.start)
        dtype = torch.promote_types(inject.dtype, torch.float32)
        zeros = torch.zeros(rows, window, size, dtype=dtype, device=device)
        self.fresh = begin(zeros, solve)
        self.guess = None if guess is None else torch.cat([guess.to(dtype), zeros], dim=1)
        self.progress = self._fresh(self.start)
        blank = (rows, length + 2 * window)
        self.value = torch.zeros(*blank, size, dtype=dtype, device=device)
        self.image = torch.zeros_like(self.value)
        self.status = torch.zeros(blank, dtype=torch.int8, device=device)
        self.steps = torch.zeros(blank, dtype=torch.int32, device=device)
        self.residual = torch.zeros(blank, device=device)
        self.sweeps = 0

    def run(self) -> Solution:
        stride = max(1, self.window // 4)
        waits = bool((self.start < self.limit).any())
        while waits:
            for _ in range(min(self.solve.check_every, self.solve.max_steps) or 1):
                measured = self.progress.z
                self.progress, fz, after = sweep(self._at, self.progress, self.solve, chain=True)
                self.sweeps += 1
            left = self.limit - self.start
            settled = (self.progress.status != Status.OPEN).cumprod(1).sum(1).minimum(left)
            moved = torch.where(settled >= left.clamp(max=stride), settled, 0)
            stays, whole = moved == 0, (moved == 0) | (moved == self.window)
            known = whole & (stays | (self.progress.z == measured).flatten(1).all(1))
            # The host asks once for all that it has to know.
            told = stays.all(), known.all(), whole.all(), (moved < left).any()
            all_stay, all_known, all_whole, waits = torch.stack(told).tolist()
            if not all_stay:
                if not all_known:
                    # One more evaluation gives F and the state after exactly `moved` positions.
                    fz, after = self.step(self.progress.z, self.inject, self.state, moved)
                    self.sweeps += 1
                self._retire(moved, fz, after, whole=all_whole)
        keep = slice(0, self.length)
        return Solution(
            self.value[:, keep],
            self.status[:, keep],
            self.steps[:, keep],
            self.residual[:, keep],
            self.sweeps,
            None,
            (self.image[:, keep], self.state),
        )

    def _at(self, z: Tensor) -> tuple[Tensor, tree.Tree]:
        return self.step(z, self.inject, self.state, None)

    def _retire(self, moved: Tensor, fz: Tensor, after: tree.Tree, *, whole: bool) -> None:
        """Keep the first `moved` positions of each row and move its window past them.

        `whole`: whether every row keeps all of its window or nothing.
        """
        p = self.progress
        self.state = tree.select(moved > 0, after, self.state)
        target = self._targets(moved)
        self._scatter(self.value, target, p.z)
        self._scatter(self.image, target, fz.to(self.image.dtype))
        self._scatter(self.status, target, p.status)
        self._scatter(self.steps, target, p.steps)
        self._scatter(self.residual, target, p.residual)
        fresh = self._fresh(self.start + self.window)
        self.start = self.start + moved
        self.inject = self._view(self.chain, self.start)
        if whole:
            self.progress = tree.select(moved > 0, fresh, p)
        else:
            source = self.offsets + moved[:, None]
            self.progress = tree.map_(
                lambda leaf, new: torch.cat([leaf, new], dim=1).gather(1, _like(source, leaf)),
                p,
                fresh,
            )

    def _fresh(self, start: Tensor) -> Progress:
        """Where the positions from `start` begin."""
        return (
            self.fresh if self.guess is None else begin(self._view(self.guess, start), self.solve)
        )

    def _targets(self, moved: Tensor) -> Tensor:
        """Where each position of the window is kept; the unkept ones go behind the end."""
        kept = self.offsets < moved[:, None]
        spare = self.length + self.window + self.offsets
        return torch.where(kept, self.start[:, None] + self.offsets, spare)

    @staticmethod
    def _scatter(into: Tensor, target: Tensor, leaf: Tensor) -> None:
        into.scatter_(1, _like(target, leaf), leaf)

    def _view(self, chain: Tensor, start: Tensor) -> Tensor:
        index = (start[:, None] + self.offsets).clamp(max=chain.shape[1] - 1)
        return chain.gather(1, _like(index, chain))


def _like(index: Tensor, leaf: Tensor) -> Tensor:
    """Repeat a (B, W) index over the trailing dimensions of `leaf`."""
    shape = index.shape + (1,) * (leaf.ndim - 2)
    return index.reshape(shape).expand(*index.shape, *leaf.shape[2:])
