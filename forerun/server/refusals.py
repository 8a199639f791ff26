"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}` and a status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

INVALID = "invalid_request_error"
SERVER = "server_error"
LONGEST = 500
"""The most characters of a message: it may quote what was sent."""
CODES = {404: "not_found", 405: "method_not_allowed"}


class RefusedError(Exception):
    """A request that is not served, and why."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        kind: str = INVALID,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status, self.kind = message, param, code, status, kind
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, Any]:
        message = self.message if len(self.message) <= LONGEST else self.message[: LONGEST - 3] + "..."
        return {"error": {"message": message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.to_dict(), self.status, self.headers)


def overloaded(message: str) -> RefusedError:
    return RefusedError(message, None, "rate_limit_exceeded", 429, "rate_limit_error", {"Retry-After": "1"})


def draining() -> RefusedError:
    return RefusedError(
        "the server is shutting down: send the request to another one, or later",
        None, "shutting_down", 503, SERVER, {"Retry-After": "5", "Connection": "close"},
    )  # fmt: skip


def timed_out(seconds: float) -> RefusedError:
    return RefusedError(
        f"the answer took more than {seconds:g} seconds: ask for fewer tokens", None, "timeout", 504, SERVER
    )


def broken(error: BaseException | None = None) -> RefusedError:
    """Returns what a client is told of a bug: nothing of its insides."""
    name = "" if error is None else f" ({type(error).__name__})"
    return RefusedError(f"the server failed{name}; its log says more", None, "internal_error", 500, SERVER)


async def on_refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedError)
    return error.response()


async def on_http(request: Request, error: Exception) -> JSONResponse:
    """Answers for paths and methods that there are not."""
    assert isinstance(error, HTTPException)
    messages = {404: f"there is no {request.url.path}", 405: f"{request.url.path} does not take {request.method}"}
    message = messages.get(error.status_code, str(error.detail))
    code = CODES.get(error.status_code)
    return RefusedError(message, None, code, error.status_code, INVALID, error.headers).response()


async def on_bug(request: Request, error: Exception) -> JSONResponse:
    """Answers for a bug; starlette raises the error again, for the server's log."""
    return broken().response()
