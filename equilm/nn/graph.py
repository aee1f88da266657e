"""Any function without arguments as a CUDA graph. `capture.py` has training's graphs.

`Recorder` calls functions whose buffers stay where they are, from graphs where it may. Read
`equilm/decode/slots.py` next.
"""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import nn

from equilm import tree
from equilm.nn.linear import constants

T = TypeVar("T")
Pool = Any  # PyTorch's handle of memory that graphs share


def recorded(function: Callable[[], T], *, pool: Pool | None = None) -> Callable[[], T]:
    """Record a function, and return one that replays it.

    Args:
        function: Reads and writes tensors that stay where they are, needs no gradient, and asks
            the device nothing. It is run once before it is recorded.
        pool: Memory that it shares with others, one of which runs at a time; `None` for its own.

    Returns:
        What replays it, and returns the very tensors of the recording, overwritten.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        # The first time compiles kernels, which a graph cannot hold.
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph, pool=pool):
        result = function()

    def replay() -> T:
        graph.replay()
        return result

    return replay


class Recorder:
    """Calls functions by name: the first of a name is recorded, and replayed whenever asked again.

    All recordings share their memory: what one returns is good until another one is called.

    Args:
        module: Its constants, as `prepared` made them, live as long as what was recorded of them.
        records: Whether to; if not, a call is a call.
    """

    def __init__(self, module: nn.Module, *, records: bool) -> None:
        self.module, self.records = module, records
        self._replays: dict[Hashable, Callable[[], Any]] = {}
        self._constants: list[Any] = []
        self._pool: Pool | None = None

    def __call__(
        self, name: Hashable, function: Callable[[], T], *, changes: tree.Tree = None
    ) -> T:
        """Call a function, or what was recorded of the first of its name.

        Args:
            name: Two functions of one name do the same to the same buffers.
            function: As for `recorded`; done twice it must leave what it leaves done once.
            changes: But for these buffers, which may be different then.
        """
        if not self.records:
            return function()
        if name not in self._replays:
            if not self._replays:
                self._pool = torch.cuda.graph_pool_handle()
            before = tree.map_(torch.clone, changes)
            self._replays[name] = recorded(function, pool=self._pool)
            self._constants.append(constants(self.module))
            tree.overwrite(changes, before)
        result: T = self._replays[name]()
        return result

    def forget(self) -> None:
        """Record anew, because buffers have moved."""
        self._replays.clear()
        self._constants.clear()
