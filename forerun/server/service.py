"""What the endpoints of one server share."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from forerun.runtime.model import CompiledModel
from forerun.server.admission import Admission
from forerun.server.decoding import Decoding
from forerun.server.limits import Limits
from forerun.server.metrics import Metrics
from forerun.server.refusals import draining

T = TypeVar("T")


@dataclass
class Service:
    """A model that is served, under a name."""

    model: CompiledModel
    tokenizer: Any
    name: str
    limits: Limits
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.admission = Admission(self.limits)
        self.decoding = Decoding(self.model, self.tokenizer)
        self.metrics = Metrics(self.model, self.decoding)
        # Encoding changes nothing of a tokenizer, so that two threads may do it.
        self._short, self._long = (ThreadPoolExecutor(1, f"forerun-{each}") for each in ("encoding", "compiling"))
        self._closed = False

    async def beside(self, work: Callable[[], T], long: bool) -> T:
        """Runs work beside the event loop, one after another. Nobody whose work is short waits for long work.

        Raises `RefusedError` after `close`.
        """
        pool = self._long if long else self._short
        if self._closed:
            raise draining()
        try:
            return await asyncio.wrap_future(pool.submit(_without_panics, work))
        except asyncio.CancelledError:
            if self._closed:  # it has not begun
                raise draining() from None
            raise

    def close(self) -> None:
        """Ends all texts, and what waits to be run."""
        self._closed = True
        self.decoding.stop()
        for pool in (self._short, self._long):
            pool.shutdown(wait=False, cancel_futures=True)


def _without_panics(work: Callable[[], T]) -> T:
    """Returns what `work` does. A panic in Rust, which is no `Exception`, becomes one."""
    try:
        return work()
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"{type(error).__name__} beside the event loop") from error


def fingerprint_of(model: CompiledModel, sources: Iterable[str]) -> str:
    """Returns the digest of all on which a text depends besides its request: model, compiler, kernels.

    sources     lines that identify the compiler and the model's files (`identity.identity`)
    """
    told = [repr(model.origin), repr(sorted(model.overrides.items())), *sources]
    return f"fp_{hashlib.sha256(chr(10).join(told).encode()).hexdigest()[:16]}"
