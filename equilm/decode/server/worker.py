"""The bridge between the engine, which blocks, and the event loop, which must not.

One thread owns the engine: orders come to it through a queue, events leave it through
`call_soon_threadsafe`. Everything else here runs in the event loop. Read `app.py` next.
"""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Protocol

from equilm.decode.engine import Counts
from equilm.decode.request import Event, Request


class Engine(Protocol):
    """What the server needs of an engine; not thread-safe, but for its counts."""

    @property
    def capacity(self) -> int | None:
        """Tokens of a prompt and its answer, if they are limited."""

    @property
    def counts(self) -> Counts:
        """Where it stands."""

    @property
    def busy(self) -> bool:
        """Whether anything is waiting or running."""

    def submit(self, request: Request) -> int:
        """Take a request; raise ValueError if it cannot be answered."""

    def cancel(self, request_id: int) -> None:
        """Forget a request, running or waiting."""

    def step(self) -> list[Event]:
        """Work a little, and tell what became known."""


class Stopped(Exception):
    """The engine works no more: the server is going down, or it failed."""


class Full(Exception):
    """More answers are wanted at once than may wait."""


class Answers:
    """The events of a few requests that belong together, in the order they became known."""

    def __init__(self, size: int) -> None:
        self.open = set(range(size))
        self.ids: dict[int, int] = {}  # of the worker's thread: place of each id
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._events: asyncio.Queue[tuple[int, Event] | Exception] = asyncio.Queue()

    def put(self, place: int, event: Event) -> None:
        """Add an event of the request at this place."""
        if place in self.open:
            if event.finish_reason is not None:
                self.open.discard(place)
            self._events.put_nowait((place, event))

    def fail(self, error: Exception) -> None:
        """End them all."""
        self.open.clear()
        if self.accepted.done():
            self._events.put_nowait(error)
        else:
            self.accepted.set_exception(error)

    def accept(self) -> None:
        """Tell that the engine has taken them."""
        if not self.accepted.done():
            self.accepted.set_result(None)

    async def events(self, deadline: float) -> AsyncIterator[tuple[int, Event]]:
        """Yield (place, event) until every request has ended.

        Args:
            deadline: On the clock of `time.monotonic`.

        Raises:
            Stopped: If the engine ended first.
            TimeoutError: If the deadline passed first.
        """
        while self.open or not self._events.empty():
            async with asyncio.timeout(deadline - time.monotonic()):
                item = await self._events.get()
            if isinstance(item, Exception):
                raise item
            yield item


class Worker:
    """Runs an engine in a thread.

    Args:
        engine: Used by that thread alone from now on.
        limit: Requests that may be open at once.
    """

    def __init__(self, engine: Engine, *, limit: int) -> None:
        self.engine, self.limit = engine, limit
        self.ended = asyncio.Event()
        self._stopping = False
        self._all: set[Answers] = set()
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._places: dict[int, tuple[Answers, int]] = {}  # of the thread, by request id
        self._changed = asyncio.Event()

    @property
    def failed(self) -> bool:
        """Whether the thread ended without having been asked to."""
        return self.ended.is_set() and not self._stopping

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return sum(len(answers.open) for answers in self._all)

    def start(self) -> None:
        """Start the thread; call it inside the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="equilm-engine", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after the step it is in; what is open fails with `Stopped`."""
        self._stopping = True
        self._orders.put(None)
        await asyncio.to_thread(self._thread.join)

    async def open(self, requests: Sequence[Request]) -> Answers:
        """Hand requests to the engine, all of them or none.

        Raises:
            Full: If they are too many.
            Stopped: If the engine works no more.
            ValueError: If the engine refuses one of them.
        """
        if self._stopping or self.ended.is_set():
            raise Stopped("the engine works no more")
        if self.num_open + len(requests) > self.limit:
            raise Full(f"{self.num_open} answers are open already")
        answers = Answers(len(requests))
        self._all.add(answers)
        self._orders.put(lambda: self._submit(answers, requests))
        try:
            await answers.accepted
        except BaseException:
            self.close(answers)
            raise
        return answers

    def close(self, answers: Answers) -> None:
        """Forget answers; what the engine has not finished of them is cancelled at once."""
        if answers.open:
            answers.open.clear()
            self._orders.put(lambda: self._cancel(answers))
        self._all.discard(answers)
        self._changed.set()

    async def drained(self) -> None:
        """Wait until nothing is open."""
        while self._all:
            self._changed.clear()
            await self._changed.wait()

    def close_one(self, answers: Answers, place: int) -> None:
        """Cancel one of them, whose text has ended before its tokens."""
        if place in answers.open:
            answers.open.discard(place)
            self._orders.put(lambda: self._cancel(answers, place))

    # What follows runs in the thread.

    def _work(self) -> None:
        try:
            while self._obey(wait=not self.engine.busy):
                if self.engine.busy:
                    self._tell(self.engine.step())
        finally:
            self._loop.call_soon_threadsafe(self._ended)

    def _obey(self, *, wait: bool) -> bool:
        """Carry out what was ordered; false if the order is to end."""
        while True:
            try:
                order = self._orders.get(block=wait)
            except queue.Empty:
                return True
            if order is None:
                return False
            order()
            wait = False

    def _submit(self, answers: Answers, requests: Sequence[Request]) -> None:
        for place, request in enumerate(requests):
            try:
                request_id = self.engine.submit(request)
            except ValueError as error:
                self._cancel(answers)
                self._loop.call_soon_threadsafe(answers.fail, error)
                return
            self._places[request_id] = answers, place
            answers.ids[request_id] = place
        self._loop.call_soon_threadsafe(answers.accept)

    def _cancel(self, answers: Answers, place: int | None = None) -> None:
        for request_id, at in list(answers.ids.items()):
            if place in (None, at):
                self.engine.cancel(request_id)
                self._forget(request_id)

    def _forget(self, request_id: int) -> None:
        answers, _ = self._places.pop(request_id)
        del answers.ids[request_id]

    def _tell(self, events: Iterable[Event]) -> None:
        told = []
        for event in events:
            if event.request_id in self._places:
                told.append((*self._places[event.request_id], event))
                if event.finish_reason is not None:
                    self._forget(event.request_id)
        if told:
            self._loop.call_soon_threadsafe(_deliver, told)

    def _ended(self) -> None:
        """In the event loop again, with nobody left to answer."""
        self.ended.set()
        for answers in tuple(self._all):
            if answers.open:
                answers.fail(Stopped("the engine stopped before the answer was complete"))


def _deliver(told: list[tuple[Answers, int, Event]]) -> None:
    for answers, place, event in told:
        answers.put(place, event)
