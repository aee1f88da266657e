"""The rows that are being decoded: buffers of states and injections, and what is done to them.

Row r belongs to the request in slot r. A sweep is a function of the first `width` rows, which are
views of buffers that never move; so is what follows for the rows whose token has settled. On a GPU
each is recorded once for a number of rows and replayed. It knows no requests. Read `engine.py`
next.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from equilm import tree
from equilm.decode.evaluation import Evaluation
from equilm.decode.sampling import draw
from equilm.nn.graph import Recorder
from equilm.nn.mixer import State
from equilm.ops.rows import row_copier
from equilm.solve.iterate import Limits, Progress, Status, begin, sweep

Start = Literal["zero", "previous"]

# The residual below which an answer is near. 0.3 took all of the gain that there was on a tracker,
# and hardly a far answer on a language model; 0.1 missed some, 0.5 took many (LOG.md).
NEAR = 0.3

# A token whose residual is at most so many tolerances may settle in the next sweep. One that does
# from further away takes a sweep more; one that does not was written in vain.
SOON = 4.0


class Reading(NamedTuple):
    """What the host knows after some sweeps, row by row."""

    ready: list[bool]  # whether the token has settled and its output is at hand
    steps: list[int]
    status: list[int]  # a Status
    residuals: list[list[float]]  # of each sweep, for each row


class Slots:
    """Buffers of `rows` rows, and the solve in flight in them.

    Args:
        evaluation: F.
        rows: R.
        capacity: Tokens that a row's state has room for.
        start: Where the solve of a token begins: at zero, or at the answer to the token before it
            if one evaluation there finds it near.
        check_every: Sweeps between two looks.

    Raises:
        ValueError: For another start.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        *,
        rows: int,
        capacity: int,
        start: Start = "zero",
        check_every: int = 1,
    ) -> None:
        if start not in get_args(Start):
            raise ValueError(f"start: expected 'zero' or 'previous', got {start!r}")
        self.evaluation, self.start, self.check_every = evaluation, start, check_every
        device = evaluation.model.embedding.device
        self.state = evaluation.model.init_state(rows, capacity)
        tokens_R1 = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self.inject_R1E = evaluation.inject(tokens_R1)
        self.limits = Limits(
            torch.zeros(rows, 1, device=device),
            torch.ones(rows, 1, dtype=torch.int32, device=device),
        )
        blank = begin(evaluation.zeros(rows), evaluation.solve, settled=tokens_R1 == 0)
        self.progress: Progress = tree.map_(torch.clone, blank)
        self._zero = begin(evaluation.zeros(1), evaluation.solve)
        self._image_R1D = torch.zeros_like(self.progress.z)
        # What a recording reads: which rows, their tokens, and what these are drawn with.
        self._rows_R, self._tokens_R1 = tokens_R1[:, 0].clone(), tokens_R1
        self._draws_R2 = torch.zeros(rows, 2, dtype=torch.float64, device=device)
        self.recorder = Recorder(evaluation.model, records=evaluation.can_be_recorded)
        self._width = rows
        self._keep: dict[int, Callable[[Tensor], None]] = {}

    def forget(self) -> None:
        """Record anew: the weights have moved."""
        self.recorder.forget()
        self._keep.clear()

    def place(self, row: int, state: State, *, tolerance: float, max_steps: int) -> None:
        """Put a state of one row, and the limits of its solves, into a row."""
        tree.map_(lambda into, leaf: into[row].copy_(leaf[0]), self.state, state)
        explicit = self.evaluation.equilibrium is None
        self.limits.tolerance[row] = torch.inf if explicit else tolerance
        self.limits.max_steps[row] = max_steps
        # Nothing was answered before the first token.
        self.progress.z[row] = 0

    def state_of(self, row: int) -> State:
        """Return a view of the state of one row."""
        return tree.map_(lambda leaf: leaf[row : row + 1], self.state)

    def move(self, source: int, target: int) -> None:
        """Copy everything of one row into another."""
        for buffers in (self.state, self.inject_R1E, self.limits, self.progress):
            tree.map_(lambda leaf: leaf[target].copy_(leaf[source]), buffers)

    def feed(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Begin to solve the next token of these rows."""
        count = self._choose(rows)
        self._tokens_R1[:count, 0].copy_(_padded(tokens, count))
        self.recorder(("feed", count), partial(self._feed, count))

    def sweep(self, width: int) -> Reading:
        """Evaluate F `check_every` times for the first `width` rows, wait for the device, read."""
        after, told_KW = self.recorder(
            ("sweep", width), partial(self._sweeps, width), changes=self.progress
        )
        self._width = width
        if not self.recorder.records or width not in self._keep:
            self._keep[width] = row_copier(
                zip(tree.leaves(self.state), tree.leaves(after), strict=True)
            )
        ready, steps, status, *residuals = told_KW.tolist()
        return Reading(
            [bool(one) for one in ready],
            [int(one) for one in steps],
            [int(one) for one in status],
            [list(row) for row in zip(*residuals, strict=True)],
        )

    def commit(self, rows: Sequence[int]) -> None:
        """Keep the states after the tokens of these rows, which the last sweep found ready."""
        count, keep = self._choose(rows), self._keep[self._width]
        self.recorder(("commit", self._width, count), lambda: keep(self._rows_R[:count]))

    def outputs(self, rows: Sequence[int]) -> Tensor:
        """Return the outputs y_ND of these rows, which the last sweep found ready."""
        return self._image_R1D[torch.tensor(rows, device=self._image_R1D.device), 0]

    def answer(self, rows: Sequence[int], draws: Sequence[tuple[float, float]]) -> list[int]:
        """Draw a token from the outputs of these ready rows, and begin to solve it.

        Args:
            rows: Those committed, or some of them.
            draws: The temperature and the uniform number of each.
        """
        count = self._choose(rows)
        warm = any(temperature > 0 for temperature, _ in draws)
        if warm:
            self._draws_R2[:count].copy_(_padded(draws, count))
        ids_N = self.recorder(("answer", count, warm), partial(self._answer, count, warm))
        ids: list[int] = ids_N.tolist()
        return ids[: len(rows)]

    def _choose(self, rows: Sequence[int]) -> int:
        """Say which rows it is about; return how many, counting some again for a round number."""
        count = len(rows)
        if self.recorder.records:
            count = min(1 << (count - 1).bit_length(), len(self._rows_R))
        self._rows_R[:count].copy_(_padded(rows, count))
        return count

    def _feed(self, count: int) -> None:
        rows_N = self._rows_R[:count]
        self.inject_R1E.index_copy_(0, rows_N, self.evaluation.inject(self._tokens_R1[:count]))
        z_N1D = self.progress.z[rows_N]
        if self.start == "zero":
            z_N1D = torch.zeros_like(z_N1D)
        fresh = begin(z_N1D, self.evaluation.solve)
        tree.map_(lambda into, new: into.index_copy_(0, rows_N, new), self.progress, fresh)

    def _answer(self, count: int, warm: bool) -> Tensor:
        logits_NV = self.evaluation.logits(self._image_R1D[self._rows_R[:count], 0])
        if warm:
            ids_N = draw(logits_NV, self._draws_R2[:count, :1], self._draws_R2[:count, 1:])
        else:
            ids_N = logits_NV.argmax(-1)
        self._tokens_R1[:count, 0].copy_(ids_N)
        self._feed(count)
        return ids_N

    def _sweeps(self, width: int) -> tuple[State, Tensor]:
        """Do it; return the states after the tokens, at the points last measured, and a table."""
        views = self.inject_R1E, self.limits, self.state, self.progress, self._image_R1D
        u_W1E, limits, state, progress, image_W1D = tree.map_(lambda leaf: leaf[:width], views)
        p, traced, wanted_W1 = progress, [], None
        for left in reversed(range(self.check_every)):
            status_W1, z_W1D = p.status.clone(), p.z.clone()
            if left == 0 and self.evaluation.can_leave_rows:
                wanted_W1 = self._may_settle(p, limits)
            p, fz_W1D, after = sweep(
                partial(self._evaluate, u_W1E, state, wanted_W1, peeks=left > 0),
                p._replace(z=z_W1D),
                self.evaluation.solve,
                chain=False,
                limits=limits,
                inplace=self.start == "zero",
            )
            if self.start == "previous":
                p = self._back_to_zero(p, z_W1D)
            traced.append(p.residual.clone())
        # Who gave up in the last sweep was moved by it: the next one finds out where to.
        ready_W1 = (p.status == Status.CONVERGED) | (status_W1 != Status.OPEN)
        if wanted_W1 is not None:
            # Who settled by surprise is evaluated once more, where it is.
            ready_W1 &= wanted_W1
        told = ready_W1, p.steps, p.status, *traced
        image_W1D.copy_(fz_W1D)
        tree.overwrite(progress, p)
        # One table, so that the host asks once.
        return after, torch.cat([one.float() for one in told], dim=1).T.contiguous()

    def _evaluate(
        self, u_W1E: Tensor, state: State, wanted_W1: Tensor | None, z_W1D: Tensor, *, peeks: bool
    ) -> tuple[Tensor, State]:
        """Evaluate F; have the state after the tokens, if at all, where it may be kept."""
        if peeks:
            return self.evaluation.peek(z_W1D, u_W1E, state), None
        if wanted_W1 is None:
            return self.evaluation(z_W1D, u_W1E, state)
        return self.evaluation.some(z_W1D, u_W1E, state, wanted_W1[:, 0])

    def _may_settle(self, p: Progress, limits: Limits) -> Tensor:
        """Return which tokens have settled, or may in the sweep to come."""
        may_W1 = (p.status != Status.OPEN) | (p.residual <= SOON * limits.tolerance)
        # Where a first evaluation finds the last answer good enough, nothing told so before.
        return may_W1 | (p.steps == 0) if self.start == "previous" else may_W1

    def _back_to_zero(self, p: Progress, measured_W1D: Tensor) -> Progress:
        """Let rows that began at an answer which is not near begin again, one evaluation later."""
        first_W1 = (p.steps == 1) & (p.status == Status.OPEN)
        far_W1 = first_W1 & (p.residual >= NEAR) & (measured_W1D != 0).any(-1)
        fresh = self._zero._replace(steps=p.steps, age=p.age, residual=p.residual)
        back: Progress = tree.select(far_W1[:, 0], fresh, p)
        return back


def _padded(values: Sequence[int] | Sequence[tuple[float, float]], count: int) -> Tensor:
    """Return values as a tensor of `count` rows, the first again behind the last."""
    repeated = [values[0]] * (count - len(values))
    return torch.tensor([*values, *repeated])
