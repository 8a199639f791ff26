"""What Prometheus may ask for."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forerun.runtime.model import CompiledModel
from forerun.runtime.recording import Iteration
from forerun.server.decoding import Decoding

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
GONE = 499
"""The status of a request whose client has gone before the answer, as other servers count it."""


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self, model: CompiledModel, decoding: Decoding) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("forerun_requests", "Requests", ("path", "status"), registry=registry)
        self.seconds = Histogram(
            "forerun_request_seconds", "Seconds from request to end of answer", ("path",), buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.first = Histogram(
            "forerun_first_token_seconds", "Seconds from request to first token", buckets=SECONDS, registry=registry
        )
        self.prompt_tokens = Counter("forerun_prompt_tokens", "Tokens of prompts", registry=registry)
        self.tokens = Counter("forerun_generated_tokens", "New tokens", registry=registry)
        self.steps = Counter("forerun_steps", "Evaluations of the model", registry=registry)
        self.rows = Counter("forerun_rows", "Rows of these, by what they were", ("kind",), registry=registry)
        self.accepted = Histogram(
            "forerun_accepted_length", "Tokens that a step commits to a text", buckets=LENGTHS, registry=registry
        )
        cache = model.engine.cache
        self._gauge("forerun_texts_running", "Texts with a place in the cache", lambda: decoding.running)
        self._gauge("forerun_texts_waiting", "Texts that wait for one", lambda: decoding.waiting)
        self._gauge("forerun_cache_blocks", "Blocks of the cache", lambda: cache.blocks)
        self._gauge("forerun_cache_blocks_used", "Blocks that texts hold", lambda: cache.blocks - cache.free)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(name, text, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def listen(self, iteration: Iteration) -> None:
        """Counts an iteration of the loop."""
        self.steps.inc()
        self.rows.labels("prompt").inc(iteration.prompt_rows)
        self.rows.labels("tree").inc(sum(len(outcome.tree) for outcome in iteration.outcomes))
        for outcome in iteration.outcomes:
            self.accepted.observe(len(outcome.tokens))


class Counting:
    """Middleware that counts requests by path and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = scope["path"] if scope["path"] in self.paths else "other"  # as many labels as there are paths
        try:
            await self.app(scope, receive, counted)
        except Exception:
            status = status or 500  # which is sent from further out
            raise
        finally:
            self.metrics.requests.labels(path, str(status or GONE)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - began)
        return None
