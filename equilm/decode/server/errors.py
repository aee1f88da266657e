"""What goes wrong, as OpenAI's clients read it: {"error": {message, type, param, code}}.

Read `app.py` next.
"""

import re
import reprlib
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

# Bodies that the framework cannot read, by what it stumbled over.
_BODIES: Mapping[type | None, str] = {
    UnicodeDecodeError: "body: expected JSON in UTF-8",
    RecursionError: "body: expected JSON, got one that is nested too deeply",
}
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        message: One line for a person.
        param: The field that is wrong, if one is.
        code: A word for programs.
        headers: To send along.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers

    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": _clean(str(self)),
                "type": _KINDS.get(self.status, kind),
                "param": self.param and _clean(self.param),
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """Return the HTTP response."""
        return JSONResponse(self.body(), self.status, headers=self.headers)


def _clean(text: str) -> str:
    """Half a surrogate pair in what the client sent must not break the answer."""
    return text.encode(errors="replace").decode()


def bad(param: str, message: str, *, code: str | None = None) -> ApiError:
    """Return the error of a field that is wrong: status 400."""
    return ApiError(400, f"{param}: {message}", param=param, code=code)


def install(app: FastAPI) -> None:
    """Make every error of the app leave it in that shape, those of the framework too."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        told = _BODIES.get(type(error.__cause__), str(error.detail))
        return ApiError(error.status_code, told, headers=error.headers).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _first_problem(error).response()

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> JSONResponse:
        return ApiError(500, "internal error; the server's log tells more").response()


def _first_problem(error: RequestValidationError) -> ApiError:
    """OpenAI answers 400 where FastAPI says 422, and names one field."""
    problem = error.errors()[0]
    where = [str(part) for part in problem["loc"] if part != "body"]
    if problem["type"] == "json_invalid":
        return ApiError(400, f"body: expected JSON: {problem['ctx']['error']}")
    if not where:
        return ApiError(400, "body: expected a JSON object, sent as application/json")
    return ApiError(400, f"{'.'.join(where)}: {_problem(problem)}", param=where[0])


def _problem(problem: Mapping[str, Any]) -> str:
    """What was expected and what was given, in this package's words."""
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "missing":
        return "expected a value, got none"
    if not message.startswith("Input should "):
        return message[0].lower() + message[1:]
    wanted = re.sub("^Input should (be|have) (a valid )?", "", message)
    if wanted.startswith(("greater", "less")):
        wanted = f"number {wanted}"
    article = "" if re.match("a |an |at |'|finite", wanted) else "a "
    article = "an " if article and wanted[0] in "aeiou" else article
    return f"expected {article}{wanted}, got {reprlib.repr(problem['input'])}"
