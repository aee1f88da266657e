"""The routes: OpenAI's completions, chat and models, with health, metrics and a page.

    app = build_app(Engine(model), tokenizer, ServerConfig())

Errors are in `errors.py`, limits in `guard.py` and `translate.py`, the engine's thread in
`worker.py`. Read `run.py` next.
"""

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from equilm.decode.server import errors, metrics
from equilm.decode.server.answer import Kind, Writer
from equilm.decode.server.bodies import Body, ChatBody, CompletionBody
from equilm.decode.server.guard import Guard
from equilm.decode.server.reader import Reader, token_name
from equilm.decode.server.session import EventStream, Session, unavailable, unless_hung_up
from equilm.decode.server.settings import ServerConfig
from equilm.decode.server.translate import Job, Translator, no_model
from equilm.decode.server.worker import Engine, Worker
from equilm.decode.text import Tokenizer

B = TypeVar("B", bound=Body)

_CLOSED_REQUEST = 499  # nobody reads it: nginx' status for a client that hung up


class Service:
    """What the routes share.

    Args:
        engine: Nobody else may use it.
        tokenizer: Of its model.
        config: Limits and name.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, config: ServerConfig) -> None:
        self.config, self.tokenizer = config, tokenizer
        limit = engine.counts.slots + config.limits.max_queue
        self.worker = Worker(engine, limit=limit)
        self.metrics = metrics.Metrics(lambda: engine.counts, lambda: self.worker.num_open)
        self.translator = Translator(
            config=config, tokenizer=tokenizer, capacity=engine.capacity, limit=limit
        )
        # A long text takes a tokenizer a while, and the event loop must not wait for it.
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="equilm-text")
        self.closing = False  # once the server has been asked to stop
        self.card: dict[str, Any] = {
            "id": config.name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "equilm",
            "max_model_len": engine.capacity,
            "tokenizer": type(tokenizer).__name__.lower(),
        }

    async def answer(
        self, request: Request, kind: Kind, translate: Callable[[B], Job], body: B
    ) -> Response:
        """Answer a completion or a chat, at once or as a stream."""
        if self.closing:
            raise unavailable("the server is going down")
        loop = asyncio.get_running_loop()
        job = await loop.run_in_executor(self._reading, translate, body)
        session = Session(
            self.worker,
            self.metrics,
            job,
            readers=[
                Reader(self.tokenizer, one, stop=job.stop, generate=job.generate)
                for one in job.requests
            ],
            writer=Writer(
                kind,
                model=self.config.name,
                name=lambda token, first: token_name(self.tokenizer, token, first=first),
                logprobs=job.requests[0].logprobs is not None,
                residuals=job.requests[0].residuals,
            ),
            seconds=self.config.limits.max_seconds,
        )
        await session.open()
        if body.stream:
            return EventStream(session)
        try:
            told = await unless_hung_up(request.receive, session.whole())
        finally:
            session.close()
        return Response(status_code=_CLOSED_REQUEST) if told is None else JSONResponse(told)

    async def close(self) -> None:
        """End both threads."""
        await self.worker.stop()
        self._reading.shutdown()


def build_app(engine: Engine, tokenizer: Tokenizer, config: ServerConfig) -> FastAPI:
    """Return the ASGI application; its `state.service` is the `Service`."""
    service = Service(engine, tokenizer, config)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await service.close()

    # The framework's own pages load scripts from another host.
    app = FastAPI(lifespan=life, openapi_url=None)
    app.state.service = service
    app.add_middleware(Guard, config=config, count=service.metrics.count_answer)
    errors.install(app)
    _add_answers(app, service)
    _add_facts(app, service)
    return app


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post("/v1/completions")
    async def completions(request: Request, body: CompletionBody) -> Response:
        return await service.answer(request, "completion", service.translator.completion, body)

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatBody) -> Response:
        return await service.answer(request, "chat", service.translator.chat, body)


def _add_facts(app: FastAPI, service: Service) -> None:
    page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    policy = _policy(page)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.card]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != service.config.name:
            raise no_model(name)
        return service.card

    @app.get("/health")
    async def health() -> dict[str, str]:
        if service.closing or service.worker.ended.is_set():
            raise unavailable("the server is going down")
        return {"status": "ok"}

    @app.get("/metrics")
    async def read_metrics() -> Response:
        return Response(service.metrics.text(), media_type=metrics.CONTENT_TYPE)

    @app.get("/")
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})


def _policy(page: str) -> str:
    """Allow the page's own script and style by their digests, and nothing from elsewhere."""
    digests = {}
    for tag in ("script", "style"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        digests[tag] = f"{tag}-src 'sha256-{digest}'"
    return (
        f"default-src 'none'; {digests['script']}; {digests['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
