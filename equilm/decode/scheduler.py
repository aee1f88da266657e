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
        prompt_pace: Tokens of prompts that are taken in for each sweep of the running, ≥ 1.

    Raises:
        ValueError: For a number or policy that is none of these.
    """

    def __init__(self, *, slots: int, policy: Policy = "sweep", prompt_pace: int = 16) -> None:
        if slots < 1:
            raise ValueError(f"slots: expected an integer >= 1, got {slots}")
        if policy not in ("sweep", "lockstep"):
            raise ValueError(f"policy: expected 'sweep' or 'lockstep', got {policy!r}")
        if prompt_pace < 1:
            raise ValueError(f"prompt_pace: expected an integer >= 1, got {prompt_pace}")
        self.slots, self.policy, self.prompt_pace = slots, policy, prompt_pace
        self.waiting: deque[int] = deque()
        self.prefilling: list[int] = []  # oldest first
        self.running: list[int] = []  # by slot
        self._debt = 0  # tokens of prompts that were taken in ahead of the pace
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

    def turn(self) -> Literal["prefill", "sweep", "idle"]:
        """Say what to do next."""
        if self.prefilling:
            due = self._between if self.policy == "lockstep" else self._debt <= 0
            if due or not self.running:
                return "prefill"
        return "sweep" if self.running else "idle"

    def took_in(self, tokens: int) -> None:
        """Note a chunk of prompts, `tokens` long: the running are owed some sweeps."""
        self._debt = tokens

    def swept(self, count: int, settled: Iterable[int]) -> list[int]:
        """Note some sweeps; return which of the slots that have settled may sample and move on."""
        self._debt -= count * self.prompt_pace
        ready = sorted(settled)
        self._between = len(ready) == len(self.running)
        return ready if self.policy == "sweep" or self._between else []

    def companions(self, left: Mapping[int, int], kind: Mapping[int, object]) -> list[int]:
        """Return who is prefilled together now: the oldest, and those much like it.

        Args:
            left: Tokens of its next chunk, for each of the prefilled.
            kind: What has to be equal for two to go together.
        """
        oldest = self.prefilling[0]
        size = left[oldest].bit_length()
        return [
            one
            for one in self.prefilling
            if left[one].bit_length() == size and kind[one] == kind[oldest]
        ]
