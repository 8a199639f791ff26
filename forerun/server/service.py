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
        self._encoding = ThreadPoolExecutor(1, "forerun-encoding")  # tokenizers are not for several threads

    async def encoding(self, work: Callable[[], T]) -> T:
        """Runs work with the tokenizer, one after another, beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._encoding, work)

    def close(self) -> None:
        self.decoding.stop()
        self._encoding.shutdown(wait=False, cancel_futures=True)


def fingerprint_of(model: CompiledModel, sources: Iterable[str]) -> str:
    """Returns the digest of all on which a text depends besides its request: model, compiler, kernels.

    sources     lines that identify the compiler and the model's files (`identity.identity`)
    """
    told = [repr(model.origin), repr(sorted(model.overrides.items())), *sources]
    return f"fp_{hashlib.sha256(chr(10).join(told).encode()).hexdigest()[:16]}"
