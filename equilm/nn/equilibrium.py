"""The equilibrium of a mixer, itself a mixer: y_t is the fixed point z_t = F(z_t, x_t, state).

Tokens and a state in, outputs and a state out, like Mamba2 or attention. It owns the injection,
the choice of solver and of gradient, and nothing of how F looks. Read
`equilm/solve/iterate.py` for the solve, `model.py` next.
"""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from equilm import tree
from equilm.nn import one_by_one
from equilm.nn.gated import Gated
from equilm.nn.linear import Linear, lowered, prepared
from equilm.nn.mixer import Mixer, State
from equilm.nn.norm import RMSNorm
from equilm.ops.fp8 import supported
from equilm.solve.compact import iterate_rows
from equilm.solve.gradient import Gradient, Phantom
from equilm.solve.guessed import settle
from equilm.solve.iterate import Solution, Solve, Transition, iterate
from equilm.solve.window import slide


@dataclass(frozen=True, kw_only=True)
class EquilibriumConfig:
    """How the fixed point is found and differentiated; the defaults are the published (24+4).

    Args:
        solve: How it is found.
        gradient: How it is differentiated.
        stream: What the layers' stream begins with: `state`, the iterate, as published; `gated`,
            the embedding and γ times the iterate, as in a model retrofitted from an explicit one.
    """

    solve: Solve = field(default_factory=Solve)
    gradient: Gradient = field(default_factory=Phantom)
    stream: Literal["state", "gated"] = "state"


class Equilibrium(Mixer):
    """z* = F(z*, u) with u = W · RMSNorm(x) + b, injected into every layer of F.

    While autograd records, the output is z* with `gradient` attached; otherwise it is F(z*), one
    undamped evaluation, which also gives the state to keep. `solve.window` splits the tokens; all
    windows give the same answer to the tolerance.

    Args:
        config: Solver and gradient; `solve` and `gradient` stay assignable, for schedules.
        body: F, any mixer; its `inject_width` must be that of all its layers.
        width: D.
        weight_norm: Whether the injection carries weight norm.
        norm_eps: Added to the mean square in the norm before the injection.

    Source: arXiv 2502.07827.
    """

    def __init__(
        self,
        config: EquilibriumConfig,
        body: Mixer,
        width: int,
        *,
        weight_norm: bool = True,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.solve, self.gradient = config.solve, config.gradient
        self.width, self.inject_width = width, body.inject_width
        self.takes_starts = body.takes_starts
        self.injection_norm = RMSNorm(width, eps=norm_eps)
        # A gated stream begins with x, which then goes beside u.
        self.takes_input = isinstance(body, Gated)
        projected = self.inject_width - (width if self.takes_input else 0)
        self.injection = Linear(width, projected, bias=True, weight_norm=weight_norm)
        self.body = body
        self._observers: tuple[list[Solution], ...] = ()
        self._trace = False

    def init_state(self, batch: int, capacity: int) -> State:
        """The state of F."""
        return self.body.init_state(batch, capacity)

    def forward(
        self,
        x_BTD: Tensor,
        state: State = None,
        inject_BTE: Tensor | None = None,
        valid_B: Tensor | None = None,
        starts_BT: Tensor | None = None,
        guess_BTD: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """See `Mixer`; a guess, without gradient, is where the solve begins instead of zero."""
        with prepared(self):
            u_BTE = self.inject(x_BTD)
            if inject_BTE is not None:
                u_BTE = u_BTE + inject_BTE
            window = self.solve.window or x_BTD.shape[1]
            if guess_BTD is not None:
                assert starts_BT is None and not torch.is_grad_enabled()
                return self._solve_guessed(guess_BTD, u_BTE, state, valid_B, window)
            if window >= x_BTD.shape[1]:
                return self._solve_at_once(u_BTE, state, valid_B, starts_BT)
            if state is None:
                state = self.init_state(*x_BTD.shape[:2])
            if torch.is_grad_enabled() or starts_BT is not None:
                return self._solve_in_pieces(u_BTE, state, valid_B, starts_BT, window)
            return self._solve_sliding(u_BTE, state, valid_B, window)

    def inject(self, x_BTD: Tensor) -> Tensor:
        """Return u_BTE = W · RMSNorm(x) + b, with x beside it if F takes it; once a forward."""
        u_BTE: Tensor = self.injection(self.injection_norm(x_BTD))
        return torch.cat([u_BTE, x_BTD], dim=-1) if self.takes_input else u_BTE

    def attach(
        self, z_BTD: Tensor, x_BTD: Tensor, state: State, starts_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Return the fixed point z with `gradient` attached, and the state after it."""
        starts = () if starts_BT is None else (starts_BT,)
        with prepared(self):
            u_BTE = self.inject(x_BTD)
            return self.gradient.attach(
                lambda z_BTD: self.body(z_BTD, state, u_BTE, None, *starts), z_BTD
            )

    def flops_per_token(self, length: int) -> float:
        """One evaluation of F; the injection is paid once and left out."""
        return self.body.flops_per_token(length)

    def _solve_at_once(
        self, u_BTE: Tensor, state: State, valid_B: Tensor | None, starts_BT: Tensor | None
    ) -> tuple[Tensor, State]:
        starts = () if starts_BT is None else (starts_BT,)
        recording = torch.is_grad_enabled()
        with torch.no_grad(), self.cheaply():
            found = self._found_at_once(u_BTE, state, valid_B, starts, recording=recording)
        self.report(found)
        if recording:
            return self.gradient.attach(
                lambda z_BTD: self.body(z_BTD, state, u_BTE, valid_B, *starts), found.value
            )
        if found.last is not None and self.solve.precision == "full":
            return found.last
        return self.body(found.value, state, u_BTE, valid_B, *starts)

    def _found_at_once(
        self,
        u_BTE: Tensor,
        state: State,
        valid_B: Tensor | None,
        starts: tuple[Tensor, ...],
        *,
        recording: bool,
    ) -> Solution:
        """The fixed point of all tokens; where gradients follow, its state is left to them."""
        rows, tokens, _ = u_BTE.shape
        # Sweeps write into the scratch slots of buffers that autograd may have saved.
        scratch = tree.map_(torch.clone, state) if recording else state

        def transition_of(rows_B: Tensor | None) -> Transition:
            if recording and valid_B is None and not starts:
                return lambda z_BTD: (self.body.peek(z_BTD, scratch, u_BTE), None)
            here = scratch, u_BTE, valid_B, *starts
            some = here if rows_B is None else tree.take(here, rows_B)
            return lambda z_BTD: self.body(z_BTD, *some)

        settled_BT = None
        if valid_B is not None:
            settled_BT = torch.arange(tokens, device=u_BTE.device) >= valid_B[:, None]
        start_BTD, solve = self.zeros(rows, tokens), self.solve
        if recording or self._trace:
            f = transition_of(None)
            return iterate(f, start_BTD, solve, chain=True, settled=settled_BT, trace=self._trace)
        return iterate_rows(transition_of, start_BTD, solve, chain=True, settled=settled_BT)

    def _solve_in_pieces(
        self,
        u_BTE: Tensor,
        state: State,
        valid_B: Tensor | None,
        starts_BT: Tensor | None,
        window: int,
    ) -> tuple[Tensor, State]:
        pieces = []
        # Split at once: the gradient of a slice is as large as the whole.
        for number, piece_BWE in enumerate(u_BTE.split(window, dim=1)):
            start, left_B = number * window, None
            if valid_B is not None:
                left_B = (valid_B - start).clamp(0, piece_BWE.shape[1])
            starts_BW = None if starts_BT is None else starts_BT[:, start : start + window]
            y_BWD, state = self._solve_at_once(piece_BWE, state, left_B, starts_BW)
            pieces.append(y_BWD)
        return torch.cat(pieces, dim=1), state

    def _solve_sliding(
        self, u_BTE: Tensor, state: State, valid_B: Tensor | None, window: int
    ) -> tuple[Tensor, State]:
        if (
            window == 1
            and valid_B is None
            and one_by_one.is_recordable(self.body, self.solve, u_BTE)
        ):
            walk = one_by_one.Walk(self.body, u_BTE, state, self.width, self.solve, records=True)
            return self._told(walk.run())
        found = slide(
            self._step,
            u_BTE,
            state,
            size=self.width,
            window=window,
            solve=self.solve,
            valid=valid_B,
        )
        return self._told(found)

    def _solve_guessed(
        self,
        guess_BTD: Tensor,
        u_BTE: Tensor,
        state: State,
        valid_B: Tensor | None,
        window: int,
    ) -> tuple[Tensor, State]:
        if state is None:
            state = self.init_state(*u_BTE.shape[:2])
        found = settle(
            self._step, u_BTE, state, guess_BTD, window=window, solve=self.solve, valid=valid_B
        )
        return self._told(found)

    def _step(
        self, z_BWD: Tensor, u_BWE: Tensor, state: State, valid_B: Tensor | None
    ) -> tuple[Tensor, State]:
        result: tuple[Tensor, State] = self.body(z_BWD, state, u_BWE, valid_B)
        return result

    def _told(self, found: Solution) -> tuple[Tensor, State]:
        self.report(found)
        assert found.last is not None
        return found.last

    def zeros(self, rows: int, tokens: int) -> Tensor:
        """Return where a solve starts, (rows, tokens, D) in float32 or wider."""
        like = self.injection_norm.weight
        dtype = torch.promote_types(like.dtype, torch.float32)
        return like.new_zeros(rows, tokens, self.width, dtype=dtype)

    def cheaply(self) -> AbstractContextManager[None]:
        """Return the context of the sweeps without gradient, in which `solve.precision` holds.

        A fixed point attracts, so that the phantom steps in full repair what the sweeps rounded.
        """
        if self.solve.precision == "full":
            return nullcontext()
        if not supported(self.injection_norm.weight.device):
            warnings.warn(
                "solve.precision: fp8 expects an NVIDIA GPU of compute capability 8.9 or newer; "
                "the solve runs in full precision",
                stacklevel=2,
            )
            return nullcontext()
        return lowered(self.body)

    def report(self, found: Solution) -> None:
        """Hand a solution to all who observe."""
        for observer in self._observers:
            observer.append(found)


@contextmanager
def observed(model: nn.Module, *, trace: bool = False) -> Iterator[list[Solution]]:
    """Collect the `Solution` of every solve inside the block, in the order of solving.

    Blocks may lie inside each other; each collects its own.

    Args:
        model: Every `Equilibrium` in it is observed.
        trace: Whether to keep the residuals of every sweep (whole-sequence solves only).
    """
    found: list[Solution] = []
    parts = [part for part in model.modules() if isinstance(part, Equilibrium)]
    before = [(part._observers, part._trace) for part in parts]
    for part in parts:
        part._observers, part._trace = (*part._observers, found), part._trace or trace
    try:
        yield found
    finally:
        for part, (observers, traced) in zip(parts, before, strict=True):
            part._observers, part._trace = observers, traced
