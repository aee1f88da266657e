"""Who waits, who is prefilled, who runs and in which slot. Pure Python: it knows no tensors.

The running requests fill the first slots without a gap, so that a sweep is a batch of the first
rows of fixed buffers; whoever leaves is replaced by the last. Read `engine.py` next.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

Policy = Literal["sweep", "lockstep"]


class Move(NamedTuple):
    """The request in slot `source` goes on in slot `target`."""

    source: int
    target: int


class Scheduler:
    """First come, first served, into a fixed number of slots.

    Args:
        slots: Requests prefilled or running at once, ≥ 1.
        policy: Who may sample: every slot whose token has settled ("sweep"), or all together once
            the last of them has ("lockstep"); these take prompts in between two tokens only.
        sweeps_between: Sweeps of the running for each sweep over somebody's prompt, ≥ 0.

    Raises:
        ValueError: For a number or policy that is none of these.
    """

    def __init__(
        self, *, slots: int, policy: Policy = "sweep", sweeps_between: float = 1.0
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots: expected an integer >= 1, got {slots}")
        if policy not in ("sweep", "lockstep"):
            raise ValueError(f"policy: expected 'sweep' or 'lockstep', got {policy!r}")
        if not sweeps_between >= 0:
            raise ValueError(f"sweeps_between: expected a number >= 0, got {sweeps_between}")
        self.slots, self.policy, self.sweeps_between = slots, policy, sweeps_between
        self.waiting: deque[int] = deque()
        self.prefilling: list[int] = []  # whose turn is next comes first
        self.running: list[int] = []  # by slot
        self._owed = 0.0  # sweeps of the running until the next chunk of a prompt
        self._between = True  # whether no token is half solved in lockstep

    @property
    def busy(self) -> bool:
        """Whether anybody waits, is prefilled or runs."""
        return bool(self.waiting or self.prefilling or self.running)

    @property
    def width(self) -> int:
        """Rows of the next sweep: the running, rounded up to a power of two or all slots."""
        return min(1 << max(len(self.running) - 1, 0).bit_length(), self.slots)

    def add(self, request: int) -> None:
        """Let a request wait."""
        self.waiting.append(request)

    def admit(self) -> list[int]:
        """Move those who wait into prefill while there are slots for them; return who moved."""
        admitted = []
        while self.waiting and len(self.prefilling) + len(self.running) < self.slots:
            admitted.append(self.waiting.popleft())
            self.prefilling.append(admitted[-1])
        return admitted

    def start(self, request: int) -> int:
        """Let a prefilled request run; return its slot."""
        self.prefilling.remove(request)
        self.running.append(request)
        return len(self.running) - 1

    def remove(self, request: int) -> Move | None:
        """Forget a request wherever it is; return who has to change slots for it, if anybody."""
        for queue in (self.waiting, self.prefilling):
            if request in queue:
                queue.remove(request)
                return None
        slot = self.running.index(request)
        last = self.running.pop()
        if slot == len(self.running):
            return None
        self.running[slot] = last
        return Move(len(self.running), slot)

    def turn(self) -> Literal["prefill", "sweep"]:
        """Say what to do next, once everybody is admitted for whom there is a slot."""
        due = self._between if self.policy == "lockstep" else self._owed <= 0
        return "prefill" if self.prefilling and (due or not self.running) else "sweep"

    def took_in(self, requests: Iterable[int], sweeps: int) -> None:
        """Note a chunk of these prompts, which took some sweeps; others are next."""
        self._owed = self.sweeps_between * sweeps
        taken = set(requests)
        self.prefilling.sort(key=lambda one: one in taken)

    def swept(self, count: int, settled: Iterable[int]) -> list[int]:
        """Note some sweeps; return which of the slots that have settled may sample and move on."""
        self._owed -= count
        ready = sorted(settled)
        self._between = len(ready) == len(self.running)
        return ready if self.policy == "sweep" or self._between else []

    def companions(self, left: Mapping[int, int], kind: Mapping[int, object]) -> list[int]:
        """Return who is prefilled together now: whose turn it is, and those much like it.

        Args:
            left: Tokens of its next chunk, for each of the prefilled.
            kind: What has to be equal for two to go together.
        """
        first = self.prefilling[0]
        size = left[first].bit_length()
        return [
            one
            for one in self.prefilling
            if left[one].bit_length() == size and kind[one] == kind[first]
        ]
