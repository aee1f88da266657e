"""Time and memory of a function on a device: events on a GPU, the clock on a CPU.

Read `floors.py` next.
"""

import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WARM_UP = 2
Run = Callable[[], object]


def median_ms(
    runs: Sequence[Run], device: torch.device, *, repeats: int, before: Run | None = None
) -> float:
    """Return the median time of a run after two warm-up runs, in ms.

    Args:
        runs: The same work on different buffers, taken in turns.
        device: Where they work.
        repeats: How many are timed, ≥ 1.
        before: Done before each run and not timed.
    """
    stopwatch = _events if device.type == "cuda" else _seconds
    turns = [runs[turn % len(runs)] for turn in range(WARM_UP + repeats)]
    return statistics.median([stopwatch(run, before) for run in turns][WARM_UP:])


def head_start(device: torch.device) -> Run | None:
    """Return what keeps a GPU reading for about two ms, so that launches behind it cost nothing.

    It empties the cache as well. A CPU has no launches: `None`.
    """
    if device.type != "cuda":
        return None
    buffer = torch.zeros(2**28, device=device)  # 1 GiB
    return lambda: [buffer.sum() for _ in range(8)]


def cache_bytes(device: torch.device) -> int:
    """Return the size of the last cache, or of one that few CPUs exceed."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    return 2**25


def peak_gib(run: Run, device: torch.device, *, held: int) -> float:
    """Return the most memory that tensors take during a run, in GiB.

    Args:
        run: What to run once.
        device: Where it works.
        held: Bytes that were taken before; only a CPU does not know them itself.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return (torch.cuda.max_memory_allocated(device) + _kept_by_graphs()) / 2**30
    with _Storages() as storages:
        run()
    return (held + storages.most) / 2**30


def _kept_by_graphs() -> int:
    """Bytes that recorded graphs use when they are run, which the allocator counts as free."""
    segments = torch.cuda.memory_snapshot()
    mine = [segment for segment in segments if tuple(segment["segment_pool_id"]) != (0, 0)]
    return sum(segment["total_size"] - segment["allocated_size"] for segment in mine)


class _Storages(TorchDispatchMode):
    """Counts the bytes of the storages that are made inside it and are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        known = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if _has_storage(leaf)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if _has_storage(leaf) and _address(leaf) not in known | self.alive.keys():
                self._born(leaf)
        return result

    def _born(self, tensor: Tensor) -> None:
        storage, address = tensor.untyped_storage(), _address(tensor)
        self.alive[address] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._died, address).atexit = False

    def _died(self, address: int) -> None:
        self.now -= self.alive.pop(address)


def _has_storage(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.untyped_storage().nbytes() > 0


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _events(run: Run, before: Run | None) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if before is not None:
        before()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _seconds(run: Run, before: Run | None) -> float:
    if before is not None:
        before()
    began = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - began)
