"""Who may ask: a key, and on a loopback address only pages and programs that mean this server."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from forerun.server.refusals import INVALID, RefusedError

OPEN = frozenset(("/", "/health"))
"""Paths that say nothing of anybody's requests."""
LOCAL = frozenset(("localhost", "127.0.0.1", "::1"))


class Guard:
    """Middleware that refuses requests without the key, and, without a key, those that are for another host.

    A page in a browser on this machine could otherwise reach a server without a key under a name of its own.
    """

    def __init__(self, app: ASGIApp, key: str | None, local: bool) -> None:
        self.app, self.local = app, local
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refused := self._refusal(Headers(scope=scope), scope["path"])) is not None:
            return await refused.response()(scope, receive, send)
        return await self.app(scope, receive, send)

    def _refusal(self, headers: Headers, path: str) -> RefusedError | None:
        if self._key is not None:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if path in OPEN or (
                kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._key)
            ):
                return None
            message = "the key is missing or wrong: send the header Authorization: Bearer KEY"
            return RefusedError(message, None, "invalid_api_key", 401, INVALID, {"WWW-Authenticate": "Bearer"})
        if self.local and host_of(headers.get("host", "")) not in LOCAL:
            return RefusedError("the host is not this server's: use 127.0.0.1 or localhost", None, "wrong_host", 403)
        return None


def host_of(header: str) -> str:
    """Returns the name in a Host header, without its port and brackets."""
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdecimal() else header
    return name.strip("[]").lower()


def require_json(request: Request) -> None:
    """Raises `RefusedError` for another kind of body: browsers send only those to other sites without leave."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusedError("the body must be JSON: send Content-Type: application/json", None, "not_json", 415)
