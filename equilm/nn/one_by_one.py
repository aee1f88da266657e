"""Sequential mode over many tokens on a GPU: every row solves its next token, all rows in step.

    found = Walk(body, u_BTE, state, width, solve, records=True).run()

What `solve/window.py` does for a window of one, where a row moves on without its neighbours, with
the same answers. Here a token is three CUDA graphs, begun, gone on with, and kept; the decision in
between stays with the host, and where `check_every` sweeps are all there may be, there is none.
Read `equilibrium.py` first.
"""

import torch
from torch import Tensor

from equilm import tree
from equilm.nn.graph import Recorder
from equilm.nn.mixer import Mixer, State
from equilm.solve.iterate import Progress, Solution, Solve, Status, begin, sweep
from equilm.solve.picard import Picard

MIN_LENGTH = 64  # tokens; recording is not worth it for fewer


def is_recordable(body: Mixer, solve: Solve, u_BTE: Tensor) -> bool:
    """Return whether a token's evaluation asks the device nothing, and there are enough of them."""
    if not (u_BTE.is_cuda and u_BTE.shape[1] >= MIN_LENGTH and solve.max_steps):
        return False
    if torch.is_autocast_enabled("cuda"):
        # Its cache of cast weights would outlive the graph that fills it.
        return False
    # Where no kernel spares it, every sweep would write the state.
    return body.recordable and body.spares_states and isinstance(solve.solver, Picard)


class Walk:
    """The buffers of a walk over a chain of tokens.

    Args:
        body: F.
        u_BTE: What F depends on at each token.
        state: What the chain begins in; it is not changed.
        width: D.
        solve: Tolerance and limits; `window` is not read.
        records: Whether to record CUDA graphs; if not, functions are called.
    """

    def __init__(
        self, body: Mixer, u_BTE: Tensor, state: State, width: int, solve: Solve, *, records: bool
    ) -> None:
        rows, length, _ = u_BTE.shape
        self.body, self.u_BTE, self.solve = body, u_BTE, solve
        self.state = tree.map_(torch.clone, state)
        self.record = Recorder(body, records=records)
        dtype = torch.promote_types(u_BTE.dtype, torch.float32)
        zeros_B1D = u_BTE.new_zeros(rows, 1, width, dtype=dtype)
        self.fresh = begin(zeros_B1D, solve)
        self.progress: Progress = tree.map_(torch.clone, self.fresh)
        self.at = torch.zeros(1, dtype=torch.int64, device=u_BTE.device)
        self.u_B1E = u_BTE[:, :1].clone()
        self.image_BTD = zeros_B1D.new_zeros(rows, length, width)
        p = self.progress
        self.found = [
            leaf.new_zeros(rows, length, *leaf.shape[2:])
            for leaf in (p.z, p.status, p.steps, p.residual)
        ]

    @torch.no_grad()
    def run(self) -> Solution:
        """Solve every token, and return the same as `slide`."""
        sweeps, at_once = 0, min(self.solve.check_every, self.solve.max_steps)
        for _ in range(self.u_BTE.shape[1]):
            self.record("start", self._start)
            taken = at_once
            while taken < self.solve.max_steps and self._is_open():
                self.record("sweep", self._sweep, changes=self.progress)
                taken += at_once
            self.record("keep", self._keep, changes=(self.state, self.at))
            sweeps += taken + 1
        value, status, steps, residual = self.found
        return Solution(value, status, steps, residual, sweeps, None, (self.image_BTD, self.state))

    def _is_open(self) -> bool:
        return bool((self.progress.status == Status.OPEN).any())

    def _start(self) -> None:
        """Take the next token, and sweep."""
        self.u_B1E.copy_(self.u_BTE.index_select(1, self.at))
        tree.overwrite(self.progress, self.fresh)
        self._sweep()

    def _sweep(self) -> None:
        """Sweep as often as the host does not ask."""
        for _ in range(min(self.solve.check_every, self.solve.max_steps)):
            after, _, _ = sweep(
                lambda z_B1D: (self.body.peek(z_B1D, self.state, self.u_B1E), None),
                self.progress,
                self.solve,
                chain=False,
                inplace=True,
            )
            tree.overwrite(self.progress, after)

    def _keep(self) -> None:
        """Keep a token's answer and the state after it."""
        p = self.progress
        y_B1D, after = self.body(p.z, self.state, self.u_B1E)
        self.image_BTD.index_copy_(1, self.at, y_B1D.to(self.image_BTD.dtype))
        for into, leaf in zip(self.found, (p.z, p.status, p.steps, p.residual), strict=True):
            into.index_copy_(1, self.at, leaf)
        tree.overwrite(self.state, after)
        self.at.add_(1)
