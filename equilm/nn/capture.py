"""A core's training forward and backward as CUDA graphs: no launch waits for the host.

    capture = Capture(model.core);  z_BTD, state = capture(x_BTD, state)

An equilibrium becomes three graphs: what is made once a solve with the first sweep, each sweep
after it, and the gradient's forward and backward passes; the decision whether to go on stays with
the host. Where the host never asks, since `check_every` is above `max_steps`, all is one graph,
windows too. Read `equilibrium.py` first.
"""

import copy
import itertools
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from equilm import tree
from equilm.nn.attention import Attention
from equilm.nn.equilibrium import Equilibrium, observed
from equilm.nn.linear import prepared
from equilm.nn.mixer import Mixer, State
from equilm.solve.gradient import Phantom
from equilm.solve.iterate import Progress, begin, drive, sweep


class Capture:
    """Runs a core eagerly for a shape seen for the first time, from graphs ever after.

    The graphs of one shape are kept; those of another replace them. They read the parameters
    where these lie, so the parameters may change but not move.

    Args:
        core: A stack or an equilibrium, on a CUDA device.
    """

    def __init__(self, core: Mixer) -> None:
        self.core = core
        self._seen: set[Any] = set()
        self._key: Any = None
        self._run: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Capture":
        """A copy records anew."""
        return Capture(copy.deepcopy(self.core, memo))

    def __call__(
        self, x_BTD: Tensor, state: State = None, starts_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Return the core's output, and the state after the tokens if they began in one.

        Args:
            x_BTD: Embedded tokens, recorded by autograd.
            state: What they begin in, without gradient; nor has the state returned one.
            starts_BT: (B, T) bool, tokens that open a document; as `Mixer.forward`.
        """
        key = self._key_of(x_BTD, state, starts_BT)
        if key not in self._seen or not self._can_record(x_BTD, state, starts_BT):
            # The first time compiles kernels, which a graph cannot hold.
            self._seen.add(key)
            found: tuple[Tensor, State] = self.core(x_BTD, state, *_behind(starts_BT))
            return found
        if key != self._key:
            self._run = None  # its memory goes before the next one's comes
            self._key, self._run = key, _recorded(self.core, x_BTD, state, starts_BT)
        recorded: tuple[Tensor, State] = self._run(x_BTD, state, starts_BT)
        return recorded

    def _can_record(self, x_BTD: Tensor, state: State, starts_BT: Tensor | None) -> bool:
        """An exact gradient and a solve in pieces let the host decide in between."""
        if not torch.is_grad_enabled():
            return False  # there is no backward pass to record
        if any(leaf.requires_grad or not leaf.is_floating_point() for leaf in tree.leaves(state)):
            # A buffer that grows would be copied whole for every call.
            return False
        if starts_BT is not None and any(isinstance(m, Attention) for m in self.core.modules()):
            return False  # it asks nothing, but was never recorded on a GPU so
        if not isinstance(self.core, Equilibrium):
            return True
        window = self.core.solve.window or x_BTD.shape[1]
        whole = window >= x_BTD.shape[1] or _never_asks(self.core)
        return whole and isinstance(self.core.gradient, Phantom)

    def _key_of(self, x_BTD: Tensor, state: State, starts_BT: Tensor | None) -> Any:
        core = self.core
        how = (core.solve, core.gradient) if isinstance(core, Equilibrium) else ()
        half = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        given = x_BTD, state, starts_BT
        shapes = [(tuple(leaf.shape), leaf.dtype) for leaf in tree.leaves(given)]
        return tuple(shapes), half, core.training, torch.is_grad_enabled(), how


def _recorded(core: Mixer, x_BTD: Tensor, state: State, starts_BT: Tensor | None) -> Any:
    half = torch.get_autocast_dtype("cuda")
    enabled = torch.is_autocast_enabled("cuda")
    # Autocast's own cache of cast weights would outlive the graph that fills it.
    with torch.autocast("cuda", half, enabled=enabled, cache_enabled=False):
        x_BTD = x_BTD.detach().clone().requires_grad_()
        state, starts_BT = tree.map_(torch.clone, (state, starts_BT))
        if isinstance(core, Equilibrium) and not _never_asks(core):
            return _Implicit(core, x_BTD, state, starts_BT)
        return _Whole(core, x_BTD, state, starts_BT)


def _never_asks(core: Equilibrium) -> bool:
    return core.solve.check_every > core.solve.max_steps


def _behind(starts_BT: Tensor | None) -> tuple[Any, ...]:
    """The arguments of a mixer's forward pass behind its state; not all know of starts."""
    return () if starts_BT is None else (None, None, starts_BT)


class _Function(nn.Module):
    """Tensors to a tensor, from the state that lies in `before`; what it leaves is in `after`."""

    def __init__(self, core: Mixer, before: State, starts_BT: Tensor | None) -> None:
        super().__init__()
        self.core, self.before, self.starts_BT = core, before, starts_BT
        self.after: State = None

    def begin(self, before: State, starts_BT: Tensor | None) -> None:
        """Overwrite what was given beside the tokens."""
        tree.overwrite((self.before, self.starts_BT), (before, starts_BT))

    def leave(self, after: State) -> None:
        """Keep the state that a forward pass left, if it began in one."""
        self.after = None if self.before is None else tree.detach(after)


class _Forward(_Function):
    """The output of a core."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        with prepared(self.core):
            y_BTD: Tensor
            y_BTD, after = self.core(x_BTD, self.before, *_behind(self.starts_BT))
        self.leave(after)
        return y_BTD


class _Attach(_Function):
    """The gradient of an equilibrium as a function of its fixed point and its input."""

    def forward(self, z_BTD: Tensor, x_BTD: Tensor) -> Tensor:
        assert isinstance(self.core, Equilibrium)
        y_BTD, after = self.core.attach(z_BTD, x_BTD, self.before, self.starts_BT)
        self.leave(after)
        return y_BTD


class _Whole:
    """A core that asks the host nothing, recorded for one shape."""

    def __init__(self, core: Mixer, x_BTD: Tensor, state: State, starts_BT: Tensor | None) -> None:
        self.core, self.function = core, _Forward(core, state, starts_BT)
        with observed(core) as self.found:
            self.graphed = _Graphed(self.function, x_BTD)
        self.told = True  # once, while recording

    def __call__(
        self, x_BTD: Tensor, state: State, starts_BT: Tensor | None
    ) -> tuple[Tensor, State]:
        self.function.begin(state, starts_BT)
        y_BTD = self.graphed(x_BTD)
        for found in () if self.told else self.found:
            # The next call overwrites these.
            steps, residual = found.steps.clone(), found.residual.clone()
            self.core.report(found._replace(steps=steps, residual=residual))  # type: ignore[operator]
        self.told = False
        return y_BTD, tree.map_(torch.clone, self.function.after)


class _Implicit:
    """A solve and its gradient, recorded for one shape."""

    def __init__(
        self, core: Equilibrium, x_BTD: Tensor, state: State, starts_BT: Tensor | None
    ) -> None:
        self.core, self.solve = core, core.solve
        self.x_BTD, self.function = x_BTD.detach().clone(), _Attach(core, state, starts_BT)
        self.prologue, self.sweep = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        pool = torch.cuda.graph_pool_handle()
        with ExitStack() as held, torch.no_grad():
            with ExitStack() as cheap:
                with torch.cuda.graph(self.prologue, pool=pool):
                    held.enter_context(prepared(core))
                    cheap.enter_context(core.cheaply())
                    u_BTE = core.inject(self.x_BTD)
                    fresh = begin(core.zeros(*x_BTD.shape[:2]), self.solve)
                    self.progress: Progress = tree.map_(torch.clone, fresh)
                    # The first evaluation draws the dropout masks, which are held for the others.
                    self._sweep_once(u_BTE)
                with torch.cuda.graph(self.sweep, pool=pool):
                    self._sweep_once(u_BTE)
            with torch.enable_grad():
                self.attach = _Graphed(self.function, self.progress.z, x_BTD)

    def __call__(
        self, x_BTD: Tensor, state: State, starts_BT: Tensor | None
    ) -> tuple[Tensor, State]:
        with torch.no_grad():
            self.x_BTD.copy_(x_BTD)
            self.function.begin(state, starts_BT)
            self.prologue.replay()
            replays = itertools.chain([lambda: None], itertools.repeat(self.sweep.replay))

            def step(progress: Progress) -> tuple[Progress, None]:
                # The first sweep was the prologue's.
                next(replays)()
                return progress, None

            found = drive(step, self.progress, self.solve)
            # The next solve overwrites these; the value is in use no longer than this call.
            self.core.report(
                found._replace(steps=found.steps.clone(), residual=found.residual.clone())
            )
        z_BTD: Tensor = self.attach(found.value, x_BTD)
        return z_BTD, tree.map_(torch.clone, self.function.after)

    def _sweep_once(self, u_BTE: Tensor) -> None:
        state, starts = self.function.before, _behind(self.function.starts_BT)[1:]
        after, _, _ = sweep(
            lambda z_BTD: self.core.body(z_BTD, state, u_BTE, *starts),
            self.progress,
            self.solve,
            chain=True,
            inplace=True,
        )
        tree.overwrite(self.progress, after)


class _Graphed:
    """Forward and backward of a module of tensors without a state of its own, recorded.

    The leaves that autograd sees while recording share the parameters' memory but are new: those
    it has met before are tied to the streams that they were met on.
    """

    def __init__(self, module: nn.Module, *args: Tensor) -> None:
        self.inputs, self.calls = args, 0
        self.parameters = list(module.parameters())
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in module.named_parameters()}
        wanted = [leaf for leaf in (*args, *leaves.values()) if leaf.requires_grad]
        pool = torch.cuda.graph_pool_handle()
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward, pool=pool):
            self.output: Tensor = torch.func.functional_call(module, leaves, args)
        self.cotangent = torch.empty_like(self.output)
        with torch.cuda.graph(self.backward, pool=pool):
            found = torch.autograd.grad(self.output, wanted, self.cotangent, allow_unused=True)
        gradients = iter(found)
        self.gradients = [
            next(gradients) if leaf.requires_grad else None for leaf in (*args, *leaves.values())
        ]
        self.output = self.output.detach()

    def __call__(self, *args: Tensor) -> Tensor:
        y: Tensor = _Replay.apply(self, len(args), *args, *self.parameters)
        return y


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graphed: _Graphed, count: int, *tensors: Tensor) -> Tensor:
        graphed.calls += 1
        ctx.graphed, ctx.call = graphed, graphed.calls
        for static, given in zip(graphed.inputs, tensors[:count], strict=True):
            if given.data_ptr() != static.data_ptr():
                static.detach().copy_(given)
        graphed.forward.replay()
        return graphed.output.detach()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        graphed = ctx.graphed
        if ctx.call != graphed.calls:
            # What the forward pass kept lies where the next one has written.
            raise RuntimeError("capture: expected a backward pass before the next forward one")
        graphed.cotangent.copy_(cotangent)
        graphed.backward.replay()
        return None, None, *graphed.gradients
