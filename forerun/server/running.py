"""A server from its socket to its last answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from forerun.errors import InvalidOptionError
from forerun.server.app import application
from forerun.server.service import Service

BACKLOG = 128
"""Connections that the operating system keeps until they are accepted."""


def bound(host: str, port: int) -> socket.socket:
    """Returns a socket at an address; port 0 is any free one. Raises `InvalidOptionError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InvalidOptionError(f"the host {host!r} has no address ({error}): give another --host") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise InvalidOptionError(
            f"{host}:{port} cannot be used ({error.strerror}): give another --port, or 0 for any free one"
        ) from error
    return found


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Draining(uvicorn.Server):
    """Goes on answering after the first signal until nothing runs; meanwhile new requests are refused with 503."""

    def __init__(self, service: Service, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.service, self.ready = service, ready
        self.interrupted = False  # whether texts were cut off
        self._until: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second one ends."""
        if self._until is None:
            self._until = time.monotonic() + self.service.limits.drain
            self.service.admission.draining = True
        else:
            self._until = 0.0

    async def on_tick(self, counter: int) -> bool:
        if self._until is not None:
            waits = self.service.admission.texts > 0 and time.monotonic() < self._until
            if not waits:
                self.interrupted = self.service.admission.texts > 0
                if self.interrupted:
                    self.service.close()  # the clients are told
                self.should_exit = True
        return await super().on_tick(counter)


def configured(service: Service, key: str | None, local: bool, ready: Callable[[], None] = lambda: None) -> Draining:
    """Returns the server, to be run on a socket; it calls `ready` when it answers."""
    config = uvicorn.Config(
        application(service, key, local),
        log_config=None,
        access_log=False,
        lifespan="on",
        http="h11",  # whose limit of headers' size others lack
        ws="none",
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=2,
    )
    return Draining(service, config, ready)
