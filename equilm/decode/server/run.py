"""Runs the server until it is told to stop, and then lets running answers finish.

SIGTERM or SIGINT once: new requests get 503, running answers go on for `grace_seconds`, then the
process ends. A second time: at once.
"""

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from equilm.decode.server.app import Service, build_app
from equilm.decode.server.settings import ServerConfig
from equilm.decode.server.worker import Engine
from equilm.decode.text import Tokenizer

_LAST_WORDS_SECONDS = 5  # to send what has been answered


def serve(
    engine: Engine,
    tokenizer: Tokenizer,
    config: ServerConfig,
    *,
    started: Callable[[str], None] = lambda url: None,
) -> None:
    """Answer requests until a signal or a failure of the engine.

    Args:
        engine: Nobody else may use it.
        tokenizer: Of its model.
        config: Address, key, limits.
        started: Called with the address once it can be asked.

    Raises:
        OSError: If it cannot listen there.
        RuntimeError: If the engine failed; the log has the traceback.
    """
    listening = _listen(config)
    app = build_app(engine, tokenizer, config)
    settings = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=_LAST_WORDS_SECONDS,
    )
    service: Service = app.state.service
    asyncio.run(_serve(uvicorn.Server(settings), service, listening, started))
    if service.worker.failed:
        raise RuntimeError("the engine failed, and the server went down with it")


def _listen(config: ServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((config.host.strip("[]"), config.port))
    except OSError as error:
        listening.close()
        told = f"{config.host}:{config.port}: cannot listen there ({error.strerror})"
        raise OSError(told) from None
    return listening


async def _serve(
    server: uvicorn.Server,
    service: Service,
    listening: socket.socket,
    started: Callable[[str], None],
) -> None:
    serving = asyncio.create_task(server.serve([listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if server.started:
        stop = _watch_signals()
        host, port, *_ = listening.getsockname()
        started(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        ended = asyncio.create_task(service.worker.ended.wait())
        asked = asyncio.create_task(stop.wait())
        await asyncio.wait((ended, asked, serving), return_when=asyncio.FIRST_COMPLETED)
        await _drain(service, stop)
        server.should_exit = True
    await serving


def _watch_signals() -> asyncio.Event:
    """Take the signals over from the server, which would refuse new connections at once."""
    asked, loop = asyncio.Event(), asyncio.get_running_loop()

    def note(_: int, __: FrameType | None) -> None:
        loop.call_soon_threadsafe(asked.set)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    return asked


async def _drain(service: Service, asked: asyncio.Event) -> None:
    service.closing = True
    asked.clear()
    drained = asyncio.create_task(service.worker.drained())
    again = asyncio.create_task(asked.wait())
    await asyncio.wait(
        (drained, again),
        timeout=service.config.limits.grace_seconds,
        return_when=asyncio.FIRST_COMPLETED,
    )
    await service.worker.stop()  # Whoever still waits is told.
