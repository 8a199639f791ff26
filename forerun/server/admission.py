"""How many texts there are, and whether the server takes more."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from forerun.server.limits import Limits
from forerun.server.refusals import RefusedError, draining, overloaded


class Admission:
    """Counts the texts of requests that are being served. Used by the event loop's thread alone."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.texts = 0
        self.draining = False

    def check(self) -> None:
        """Raises `RefusedError` if no request is taken now. Costs nothing, so it comes before a body is read."""
        if self.draining:
            raise draining()
        if self.texts >= self.limits.queue:
            raise overloaded(f"{self.texts} texts are running or waiting, the most that this server takes: try later")

    @contextmanager
    def reading(self) -> Generator[None]:
        """Counts a request whose body is being read as one text."""
        self.check()
        self.texts += 1
        try:
            yield
        finally:
            self.texts -= 1

    @contextmanager
    def admitted(self, texts: int) -> Generator[None]:
        """Counts the further texts of a request that has been read. Raises `RefusedError` if they are too many."""
        if texts > self.limits.choices:
            raise RefusedError(f"the request is for {texts} texts, but one may have {self.limits.choices}", "n")
        if self.texts + texts - 1 > self.limits.queue:
            raise overloaded(f"there is no room for {texts} texts beside {self.texts - 1} others: try later")
        self.texts += texts - 1
        try:
            yield
        finally:
            self.texts -= texts - 1
