"""What goes wrong, as OpenAI's clients read it: {"error": {message, type, param, code}}.

Read `app.py` next.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

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
        return ApiError(error.status_code, str(error.detail), headers=error.headers).response()

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
    message = problem["msg"].removeprefix("Value error, ")
    if not where:
        return ApiError(400, "body: expected a JSON object, sent as application/json")
    name = ".".join(where)
    return ApiError(400, f"{name}: {message[0].lower()}{message[1:]}", param=where[0])
