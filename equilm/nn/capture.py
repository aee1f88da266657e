"""A core's training forward and backward as CUDA graphs: no launch waits for the host.

    capture = Capture(model.core);  z_BTD = capture(x_BTD)       # tokens without a state

An equilibrium becomes three graphs: what is made once a solve, one sweep, and the gradient's
forward and backward passes; the decision whether to go on stays with the host. Read
`equilibrium.py` first.
"""

import copy
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from equilm import tree
from equilm.nn.equilibrium import Equilibrium
from equilm.nn.linear import prepared
from equilm.nn.mixer import Mixer
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

    def __call__(self, x_BTD: Tensor) -> Tensor:
        """Return the core's output for tokens without a state.

        Args:
            x_BTD: Embedded tokens, recorded by autograd.
        """
        key = self._key_of(x_BTD)
        if key not in self._seen or not self._can_record(x_BTD):
            # The first time compiles kernels, which a graph cannot hold.
            self._seen.add(key)
            y_BTD: Tensor = self.core(x_BTD)[0]
            return y_BTD
        if key != self._key:
            self._run = None  # its memory goes before the next one's comes
            self._key, self._run = key, _recorded(self.core, x_BTD)
        return self._run(x_BTD)

    def _can_record(self, x_BTD: Tensor) -> bool:
        """An exact gradient and a solve in pieces let the host decide in between."""
        if not isinstance(self.core, Equilibrium):
            return True
        window = self.core.solve.window or x_BTD.shape[1]
        return window >= x_BTD.shape[1] and isinstance(self.core.gradient, Phantom)

    def _key_of(self, x_BTD: Tensor) -> Any:
        core = self.core
        how = (core.solve, core.gradient) if isinstance(core, Equilibrium) else ()
        half = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        return tuple(x_BTD.shape), x_BTD.dtype, half, core.training, how


def _recorded(core: Mixer, x_BTD: Tensor) -> Any:
    half = torch.get_autocast_dtype("cuda")
    enabled = torch.is_autocast_enabled("cuda")
    # Autocast's own cache of cast weights would outlive the graph that fills it.
    with torch.autocast("cuda", half, enabled=enabled, cache_enabled=False):
        x_BTD = x_BTD.detach().clone().requires_grad_()
        if isinstance(core, Equilibrium):
            return _Implicit(core, x_BTD)
        return _Graphed(_Forward(core), x_BTD)


class _Forward(nn.Module):
    def __init__(self, core: Mixer) -> None:
        super().__init__()
        self.core = core

    def forward(self, x_BTD: Tensor) -> Tensor:
        with prepared(self.core):
            y_BTD: Tensor = self.core(x_BTD)[0]
        return y_BTD


class _Attach(nn.Module):
    """The gradient of an equilibrium as a function of its fixed point and its input."""

    def __init__(self, core: Equilibrium) -> None:
        super().__init__()
        self.core = core

    def forward(self, z_BTD: Tensor, x_BTD: Tensor) -> Tensor:
        return self.core.attach(z_BTD, x_BTD)


class _Implicit:
    """A solve and its gradient, recorded for one shape."""

    def __init__(self, core: Equilibrium, x_BTD: Tensor) -> None:
        self.core, self.solve = core, core.solve
        self.x_BTD = x_BTD.detach().clone()
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
                with torch.cuda.graph(self.sweep, pool=pool):
                    after, _, _ = sweep(
                        lambda z_BTD: core.body(z_BTD, None, u_BTE, None),
                        self.progress,
                        self.solve,
                        chain=True,
                        inplace=True,
                    )
                    tree.map_(_overwrite, self.progress, after)
            # Dropout masks drawn by the prologue are held, so that both see the same F.
            with torch.enable_grad():
                self.attach = _Graphed(_Attach(core), self.progress.z, x_BTD)

    def __call__(self, x_BTD: Tensor) -> Tensor:
        with torch.no_grad():
            self.x_BTD.copy_(x_BTD)
            self.prologue.replay()
            found = drive(self._step, self.progress, self.solve)
            # The next solve overwrites these; the value is in use no longer than this call.
            self.core.report(
                found._replace(steps=found.steps.clone(), residual=found.residual.clone())
            )
        z_BTD: Tensor = self.attach(found.value, x_BTD)
        return z_BTD

    def _step(self, progress: Progress) -> tuple[Progress, None]:
        self.sweep.replay()
        return progress, None


def _overwrite(old: Tensor, new: Tensor) -> Tensor:
    return old.copy_(new) if old is not new else old


class _Graphed:
    """Forward and backward of a module of tensors without a state of its own, recorded.

    The leaves that autograd sees while recording share the parameters' memory but are new: those
    it has met before are tied to the streams that they were met on.
    """

    def __init__(self, module: nn.Module, *args: Tensor) -> None:
        self.inputs = args
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
        ctx.graphed = graphed
        for static, given in zip(graphed.inputs, tensors[:count], strict=True):
            if given.data_ptr() != static.data_ptr():
                static.detach().copy_(given)
        graphed.forward.replay()
        return graphed.output.detach()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        graphed = ctx.graphed
        graphed.cotangent.copy_(cotangent)
        graphed.backward.replay()
        return None, None, *graphed.gradients
