"""Who may come in, and with how much: checks before any route sees a request.

A plain ASGI middleware: what wraps a stream must not hold it back. Read `app.py` next.
"""

import asyncio
import base64
import binascii
import hmac
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from equilm.decode.server.errors import ApiError
from equilm.decode.server.settings import ServerConfig, is_loopback

_BODY_SECONDS = 30.0  # to send one piece of a body
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """Checks key, host and size, and counts what was answered.

    Args:
        app: Where a request goes that passes.
        config: Key and limits.
        count: Called with path and status of every answer.
    """

    def __init__(
        self, app: ASGIApp, *, config: ServerConfig, count: Callable[[str, int], None]
    ) -> None:
        self.app, self.config, self.count = app, config, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
                route = scope.get("route")
                self.count(route.path if route else "", message["status"])
            await send(message)

        try:
            self._check(scope["method"], scope["path"], Headers(scope=scope))
        except ApiError as error:
            await error.response()(scope, receive, tell)
            return
        await self.app(scope, _limited(receive, self.config.limits.max_body_bytes), tell)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        config = self.config
        if path != "/health" and config.api_key is not None:
            _check_key(headers.get("authorization", ""), config.api_key)
        # A page elsewhere whose name was made to point here could read the answers.
        if config.api_key is None and config.private and not _names_loopback(headers):
            raise ApiError(403, "host: expected a name of this machine; or set an API key")
        if method == "POST":
            # A form of another site can post plain text without asking, but not JSON.
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(415, f"content-type: expected application/json, got {kind!r}")
            length = headers.get("content-length", "0")
            if length.isdecimal() and int(length) > config.limits.max_body_bytes:
                raise _too_large(config.limits.max_body_bytes)


def _check_key(given: str, key: str) -> None:
    """Take the key as a bearer token, or as the password that a browser asks for."""
    scheme, _, rest = given.partition(" ")
    shown = rest.strip().encode(errors="replace")
    if scheme.lower() == "basic":
        try:
            shown = base64.b64decode(shown, validate=True).partition(b":")[2]
        except binascii.Error:
            shown = b""
    elif scheme.lower() != "bearer":
        shown = b""
    if not hmac.compare_digest(shown, key.encode()):
        told = {"WWW-Authenticate": 'Basic realm="equilm: the API key is the password"'}
        raise ApiError(
            401, "api key: expected the right one, as a bearer token", code="invalid_api_key",
            headers=told,
        )  # fmt: skip


def _names_loopback(headers: Headers) -> bool:
    host = headers.get("host", "")
    name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else None
    return is_loopback(name if name is not None else host.partition(":")[0])


def _limited(receive: Receive, max_bytes: int) -> Receive:
    """Count what comes in, and do not wait for ever for more of it."""
    size, more = 0, True

    async def limited() -> Message:
        nonlocal size, more
        if not more:  # Whoever waits now, waits for the client to hang up.
            return await receive()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, "body: took too long") from None
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
        if size > max_bytes:
            raise HTTPException(413, str(_too_large(max_bytes)))
        return message

    return limited


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"body: expected at most {max_bytes:,} bytes")
