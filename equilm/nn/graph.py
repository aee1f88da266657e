"""Any function without arguments as a CUDA graph. `capture.py` has training's graphs."""

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def recorded(function: Callable[[], T]) -> Callable[[], T]:
    """Record a function, and return one that replays it.

    Args:
        function: Reads and writes tensors that stay where they are, needs no gradient, and asks
            the device nothing.

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
    with torch.no_grad(), torch.cuda.graph(graph):
        result = function()

    def replay() -> T:
        graph.replay()
        return result

    return replay
