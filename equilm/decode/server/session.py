"""One HTTP request being answered: events of the engine in, JSON or a stream out.

However it ends – complete, failed, too late, hung up – what it holds of the engine is given back.
Read `app.py` next.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from equilm.decode.request import Event
from equilm.decode.server.answer import DONE, Json, Piece, Usage, Writer, event
from equilm.decode.server.errors import ApiError
from equilm.decode.server.metrics import Metrics
from equilm.decode.server.reader import Reader
from equilm.decode.server.translate import Job
from equilm.decode.server.worker import Answers, Full, Stopped, Worker

_SLOW_READER_SECONDS = 30.0  # to take what is left, once the time for the answer is over


class Session:
    """Answers one request.

    Args:
        worker: Has the engine.
        metrics: Are told of it.
        job: What is asked.
        readers: One a request of the job.
        writer: Of the answer.
        seconds: How long it may take.
    """

    def __init__(
        self,
        worker: Worker,
        metrics: Metrics,
        job: Job,
        *,
        readers: list[Reader],
        writer: Writer,
        seconds: float,
    ) -> None:
        self.worker, self.metrics, self.job = worker, metrics, job
        self.readers, self.writer, self.seconds = readers, writer, seconds
        self.started = time.monotonic()
        self._num_tokens = 0
        self._answers: Answers | None = None

    async def open(self) -> None:
        """Hand the job to the engine.

        Raises:
            ApiError: If it is refused.
        """
        try:
            self._answers = await self.worker.open(self.job.requests)
        except Full as error:
            raise ApiError(
                429, f"too busy: {error}", code="rate_limit_exceeded", headers={"Retry-After": "1"}
            ) from None
        except Stopped as error:
            raise unavailable(str(error)) from None
        except ValueError as error:
            raise ApiError(400, str(error), param=str(error).partition(":")[0]) from None

    def close(self) -> None:
        """Give back what is held; may be called again."""
        if self._answers is not None:
            self.worker.close(self._answers)
            self._answers = None
            self.metrics.whole.observe(time.monotonic() - self.started)

    async def whole(self) -> Json:
        """Return the answer at once.

        Raises:
            ApiError: If there is none.
        """
        pieces = [Piece() for _ in self.readers]
        async for place, piece in self._pieces():
            pieces[place] = pieces[place].then(piece)
        return self.writer.whole(pieces, self._usage())

    async def stream(self) -> AsyncIterator[str]:
        """Yield the answer as server-sent events; an error is one of them."""
        try:
            async for place, piece in self._pieces():
                yield self.writer.chunk(place, piece)
            if self.job.usage:
                yield self.writer.usage(self._usage())
        except ApiError as error:
            yield event(error.body())
        yield DONE

    async def _pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        assert self._answers is not None
        try:
            async for place, known in self._answers.events(self.started + self.seconds):
                piece = self._read(place, known)
                if piece.finish_reason is not None:
                    self.worker.close_one(self._answers, place)
                if piece != Piece():
                    yield place, piece
        except TimeoutError:
            told = f"the answer took more than {self.seconds:g} seconds"
            raise ApiError(504, told, code="timeout") from None
        except Stopped as error:
            raise unavailable(str(error)) from None

    def _read(self, place: int, known: Event) -> Piece:
        piece = self.readers[place].read(known)
        for token in piece.tokens:
            if not self._num_tokens:
                self.metrics.first.observe(time.monotonic() - self.started)
            self._num_tokens += 1
            self.metrics.count_token(token)
        return piece

    def _usage(self) -> Usage:
        return Usage(self.job.prompt_tokens, self._num_tokens)


class EventStream(StreamingResponse):
    """A stream of a session, which it closes when it ends, for whatever reason."""

    def __init__(self, session: Session) -> None:
        super().__init__(session.stream(), media_type="text/event-stream")
        # Proxies must not collect what should be seen as it comes.
        self.headers["x-accel-buffering"] = "no"
        self._session = session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._session.seconds + _SLOW_READER_SECONDS):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            pass  # The server closes a connection whose answer is not complete.
        finally:
            self._session.close()


async def unless_hung_up(receive: Receive, work: Coroutine[Any, Any, Json]) -> Json | None:
    """Return what the work gives, or `None` once the client has hung up, and the work is cancelled.

    Args:
        receive: Of a request whose body has been read.
        work: What to do.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(receive())
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        gone.cancel()


def unavailable(message: str) -> ApiError:
    """Return the error of a server that is going down: status 503."""
    return ApiError(503, message, code="unavailable", headers={"Retry-After": "5"})
