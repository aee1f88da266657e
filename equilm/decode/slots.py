"""The rows that are being decoded: fixed buffers of states and injections, and the sweep over them.

Row r belongs to the request in slot r. A sweep is a function of the first `width` rows, which are
views of buffers that never move. It knows no requests. Read `engine.py` next.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from equilm import tree
from equilm.decode.evaluation import Evaluation
from equilm.nn.mixer import State
from equilm.solve.iterate import Limits, Progress, Status, begin, sweep

Start = Literal["zero", "previous"]

# The residual below which an answer is near. 0.3 took all of the gain that there was on a tracker,
# and hardly a far answer on a language model; 0.1 missed some, 0.5 took many (LOG.md).
NEAR = 0.3


class Reading(NamedTuple):
    """What the host knows after some sweeps, row by row."""

    ready: list[bool]  # whether the token has settled and its output is at hand
    steps: list[int]
    status: list[int]  # a Status
    residuals: list[list[float]] | None  # of each sweep, for each row; if asked for


class Slots:
    """Buffers of `rows` rows, and the solve in flight in them.

    Args:
        evaluation: F.
        rows: R.
        capacity: Tokens that a row's state has room for.
        start: Where the solve of a token begins: at zero, or at the answer to the token before it
            if one evaluation there finds it near.
    """

    def __init__(
        self, evaluation: Evaluation, *, rows: int, capacity: int, start: Start = "zero"
    ) -> None:
        self.evaluation, self.rows, self.start = evaluation, rows, start
        device = evaluation.model.embedding.device
        self.state = evaluation.model.init_state(rows, capacity)
        tokens_R1 = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self.inject_R1E = evaluation.inject(tokens_R1)
        self.limits = Limits(
            torch.zeros(rows, 1, device=device),
            torch.ones(rows, 1, dtype=torch.int32, device=device),
        )
        self._zero = begin(evaluation.zeros(rows), evaluation.solve)
        self.progress = self._blank(0)
        self._image_W1D = self.progress.z
        self._after: State = None

    @property
    def width(self) -> int:
        """Rows that the next sweep evaluates."""
        return len(self.progress.z)

    def resize(self, width: int) -> None:
        """Let the next sweep evaluate the first `width` rows; new ones are idle."""
        missing = width - self.width
        if missing > 0:
            blank = self._blank(missing)
            self.progress = tree.map_(lambda *parts: torch.cat(parts), self.progress, blank)
        elif missing < 0:
            self.progress = tree.map_(lambda leaf: leaf[:width], self.progress)

    def place(self, row: int, state: State, *, tolerance: float, max_steps: int) -> None:
        """Put a state of one row, and the limits of its solves, into a row."""
        tree.map_(lambda into, leaf: into[row].copy_(leaf[0]), self.state, state)
        explicit = self.evaluation.equilibrium is None
        self.limits.tolerance[row] = torch.inf if explicit else tolerance
        self.limits.max_steps[row] = max_steps
        # Nothing was answered before the first token.
        z_W1D = self.progress.z.clone()
        z_W1D[row] = 0
        self.progress = self.progress._replace(z=z_W1D)

    def state_of(self, row: int) -> State:
        """Return a view of the state of one row."""
        return tree.map_(lambda leaf: leaf[row : row + 1], self.state)

    def move(self, source: int, target: int) -> None:
        """Copy everything of one row into another; both are below `width`."""
        for buffers in (self.state, self.inject_R1E, self.limits):
            tree.map_(lambda leaf: leaf[target].copy_(leaf[source]), buffers)
        rows = torch.arange(self.width, device=self.progress.z.device)
        rows[target] = source
        self.progress = tree.take(self.progress, rows)

    def feed(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Begin to solve the next token of these rows."""
        device = self.inject_R1E.device
        at_N = torch.tensor(rows, device=device)
        tokens_N1 = torch.tensor(tokens, device=device)[:, None]
        self.inject_R1E.index_copy_(0, at_N, self.evaluation.inject(tokens_N1))
        fresh_W = torch.zeros(self.width, dtype=torch.bool, device=device)
        fresh_W[at_N] = True
        fresh = self._at_zero()
        if self.start == "previous":
            fresh = begin(self.progress.z, self.evaluation.solve)
        self.progress = tree.select(fresh_W, fresh, self.progress)

    def sweep(self, count: int, *, trace: bool) -> Reading:
        """Evaluate F `count` times for every row, then wait for the device and read."""
        traced = []
        for _ in range(count):
            before_W1, measured_W1D = self.progress.status, self.progress.z
            self.progress, self._image_W1D, self._after = self._sweep()
            if self.start == "previous":
                self.progress = self._back_to_zero(self.progress, measured_W1D)
            if trace:
                traced.append(self.progress.residual[:, 0])
        p = self.progress
        # Who gave up in the last sweep was moved by it: the next one finds out where to.
        ready_W1 = (p.status == Status.CONVERGED) | (before_W1 != Status.OPEN)
        table = torch.cat([ready_W1.int(), p.steps, p.status.int()], dim=1).T.tolist()
        residuals = torch.stack(traced, dim=1).tolist() if trace else None
        return Reading([bool(one) for one in table[0]], table[1], table[2], residuals)

    def commit(self, rows: Sequence[int]) -> Tensor:
        """Keep the states after the tokens of these ready rows; return their outputs y_ND."""
        at_N = torch.tensor(rows, device=self._image_W1D.device)

        def keep(into_R: Tensor, after_W: Tensor) -> None:
            # A buffer that the evaluation wrote into holds them already.
            if after_W.data_ptr() != into_R.data_ptr():
                into_R.index_copy_(0, at_N, after_W.index_select(0, at_N).to(into_R.dtype))

        tree.map_(keep, self.state, self._after)
        return self._image_W1D[at_N, 0]

    def _sweep(self) -> tuple[Progress, Tensor, State]:
        width = self.width
        u_W1E, limits, state = tree.map_(
            lambda leaf: leaf[:width], (self.inject_R1E, self.limits, self.state)
        )
        return sweep(
            lambda z_W1D: self.evaluation(z_W1D, u_W1E, state),
            self.progress,
            self.evaluation.solve,
            chain=False,
            limits=limits,
        )

    def _at_zero(self) -> Progress:
        return tree.map_(lambda leaf: leaf[: self.width], self._zero)

    def _back_to_zero(self, p: Progress, measured_W1D: Tensor) -> Progress:
        """Let rows that began at an answer which is not near begin again, one evaluation later."""
        first_W1 = (p.steps == 1) & (p.status == Status.OPEN)
        far_W1 = first_W1 & (p.residual >= NEAR) & (measured_W1D != 0).any(-1)
        fresh = self._at_zero()._replace(steps=p.steps, age=p.age, residual=p.residual)
        return tree.select(far_W1[:, 0], fresh, p)

    def _blank(self, rows: int) -> Progress:
        """The progress of rows in which nothing is solved."""
        settled_R1 = torch.ones(rows, 1, dtype=torch.bool, device=self.inject_R1E.device)
        return begin(self.evaluation.zeros(rows), self.evaluation.solve, settled=settled_R1)
