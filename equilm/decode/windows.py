"""F of a window of a prompt; on a GPU from a graph as soon as a shape comes back.

Read `evaluation.py` next.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from equilm import tree
from equilm.nn.graph import Recorder
from equilm.nn.mixer import Mixer, State

KEPT = 8  # recordings at once, each of which holds what it takes in and gives out in memory


class Windows:
    """(z_BWD, u_BWE, state, valid_B) → (F(z), state after the valid), for as long as weights stay.

    What it returns is overwritten by the next call; what it is given is copied when it is another
    tensor than the last time, so nothing given may be changed in place.

    Args:
        body: F.
        records: Whether to; if not, F is called as it is.
    """

    def __init__(self, body: Mixer, *, records: bool) -> None:
        self.body = body
        self._record = Recorder(body, records=records)
        self._seen: set[Any] = set()
        self._given: dict[Any, list[Tensor]] = {}
        self._static: dict[Any, list[Any]] = {}

    def forget(self) -> None:
        """Record anew: the weights have moved, or there is too much."""
        self._record.forget()
        for known in (self._seen, self._given, self._static):
            known.clear()

    def __call__(
        self, z_BWD: Tensor, u_BWE: Tensor, state: State, valid_B: Tensor | None
    ) -> tuple[Tensor, State]:
        """Evaluate F once."""
        name = tuple(z_BWD.shape), valid_B is None
        if not self._record.records or name not in self._seen:
            # A shape that never comes back, such as that of an odd end, is not worth a recording.
            self._seen.add(name)
            return self.body(z_BWD, state, u_BWE, valid_B)
        if name not in self._static and len(self._static) >= KEPT:
            # Rows and lengths are many; what comes back is soon recorded again.
            self.forget()
            self._seen.add(name)
        self._copy_in(name, [z_BWD, u_BWE, valid_B, state])
        return self._record(name, self._call_of(name))

    def _copy_in(self, name: Any, given: list[Any]) -> None:
        if name not in self._static:
            self._static[name] = [tree.map_(torch.clone, part) for part in given]
            self._given[name] = [*tree.leaves(given)]
            return
        last = self._given[name]
        self._given[name] = [*tree.leaves(given)]
        pairs = zip(tree.leaves(self._static[name]), self._given[name], last, strict=True)
        for into, leaf, before in pairs:
            if leaf is not before:
                into.copy_(leaf)

    def _call_of(self, name: Any) -> Callable[[], tuple[Tensor, State]]:
        z_BWD, u_BWE, valid_B, state = self._static[name]
        return lambda: self.body(z_BWD, state, u_BWE, valid_B)
