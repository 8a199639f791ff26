"""/v1/completions and /v1/chat/completions: from a request to its answer."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from forerun.errors import ForerunError, NotANumberError, PromptError
from forerun.runtime.hooks.grammar import GrammarHook
from forerun.runtime.keywords import Asked
from forerun.runtime.model import CompiledModel
from forerun.server.answers import ChatChoice, Choice, CompletionChoice, Heading, Usage
from forerun.server.bodies import B, Body, ChatBody, CompletionBody, read_body
from forerun.server.conversation import encoded, encoded_chat, tools_of
from forerun.server.decoding import Job
from forerun.server.guard import require_json
from forerun.server.keywords import keywords_of, length_of, top_of
from forerun.server.pieces import Piece
from forerun.server.refusals import RefusedError, broken, timed_out
from forerun.server.service import Service

GRACE = 5.0
"""Seconds after the time limit for which a client may still read what it has been sent."""
BODY_SECONDS = 30.0
"""In which a body must have come: until then, it keeps others waiting."""
LONG = 2**16
"""Bytes of a body beyond which encoding its texts takes long: 50 milliseconds or more."""
SEED_BITS = 53
"""Of a seed that is made up: JavaScript's numbers hold it."""
T = TypeVar("T")
log = logging.getLogger("forerun.server")
Pieces = AsyncGenerator[tuple[int, Piece]]


@dataclass
class Exchange(Generic[B]):
    """One request while it is answered."""

    service: Service
    request: Request
    body: B
    began: float
    choices: list[Choice]
    heading: Heading
    usage: Usage
    pieces: Pieces

    async def whole(self) -> Response:
        """Returns the answer in one object."""
        async for index, piece in self.pieces:
            self._take(index, piece)
        kind = self.choices[0].kind
        told = self.heading.to_dict(kind) | {"choices": [each.whole() for each in self.choices]}
        return JSONResponse(told | {"usage": self.usage.to_dict()})

    async def stream(self) -> Response:
        """Returns the answer as server-sent events. An error before the first one is raised."""
        first = await anext(self.pieces)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._events(first), media_type="text/event-stream", headers=headers)

    async def _events(self, first: tuple[int, Piece]) -> AsyncGenerator[str]:
        usage = {"usage": None} if self.body.counts_usage else {}
        heading = self.heading.to_dict(self.choices[0].chunk)
        for choice in self.choices:
            for chunk in choice.first():
                yield _event(heading | {"choices": [chunk]} | usage)
        try:
            for chunk in self._take(*first):
                yield _event(heading | {"choices": [chunk]} | usage)
            async for index, piece in self.pieces:
                for chunk in self._take(index, piece):
                    yield _event(heading | {"choices": [chunk]} | usage)
        except Exception as error:
            yield _event(refusal_of(error).to_dict())
            return
        if usage:
            yield _event(heading | {"choices": [], "usage": self.usage.to_dict()})
        yield "data: [DONE]\n\n"

    def _take(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        metrics = self.service.metrics
        if not self.usage.completion:
            metrics.first.observe(time.perf_counter() - self.began)
        self.usage.completion += piece.tokens
        metrics.tokens.inc(piece.tokens)
        return self.choices[index].chunks(piece)


class Endpoint(Generic[B]):
    """An ASGI application, so that what a request holds is let go whatever becomes of its answer."""

    def __init__(self, service: Service, kind: type[B]) -> None:
        self.service, self.kind = service, kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, began, loop = self.service, time.perf_counter(), asyncio.get_running_loop()
        request, until = Request(scope, receive), loop.time() + service.limits.seconds
        with service.admission.reading():
            require_json(request)
            given = await _read(request, service.limits.body, min(until, loop.time() + BODY_SECONDS))
            body, long = read_body(self.kind, given), len(given) > LONG
            del given
            if body.model != service.name:
                raise RefusedError(
                    f"there is no model {body.model[:100]!r}: this server has {service.name!r}", "model",
                    "model_not_found", 404,
                )  # fmt: skip
            with service.admission.admitted(body.texts):  # before anything that takes time
                seed = body.seed if body.seed is not None else secrets.randbits(SEED_BITS)
                try:
                    async with asyncio.timeout_at(until):
                        asked = await _unless_gone(request, self._asked(body, seed, long))
                except TimeoutError:
                    raise timed_out(service.limits.seconds) from None
                prompt = sum(len(each.request.prompt) for each in asked[:: body.copies])
                job = service.decoding.begin(asked, top_of(body) or 0, bool(body.watch and body.stream))
                expiry = loop.call_at(until, job.expire, service.limits.seconds)
                service.metrics.prompt_tokens.inc(prompt)
                try:
                    async with asyncio.timeout_at(until + GRACE), aclosing(job.pieces()) as pieces:
                        exchange = self._exchange(request, body, job, began, seed, prompt, pieces)
                        answer = exchange.stream() if body.stream else exchange.whole()
                        await (await _unless_gone(request, answer))(scope, receive, send)
                except ForerunError as error:  # before the answer has begun
                    raise refusal_of(error) from error
                except TimeoutError:
                    log.warning("a client has not read its answer in %g seconds", service.limits.seconds)
                finally:
                    expiry.cancel()
                    job.close()

    async def _asked(self, body: B, seed: int, long: bool) -> list[Asked]:
        """Returns what to decode: the texts of a prompt one after another. `long`: whether the body is."""
        service, found = self.service, list[Asked]()
        try:
            keywords, prompts = await service.beside(
                lambda: (keywords_of(body, seed), prompts_of(service.tokenizer, body)), long
            )
            long = long or "grammar" in keywords
            for ids in prompts:
                length = length_of(body, len(ids), service.model.max_length - len(ids), service.limits.prompt)
                work = partial(_checked, service.model, ids, max_new_tokens=length, **keywords)
                each = await service.beside(work, long)
                found += [replace(each, request=replace(each.request, identifier=copy)) for copy in range(body.copies)]
        except PromptError as error:
            raise refusal_of(error, "prompt") from error
        except ForerunError as error:
            of_format = any(word in str(error) for word in ("JSON schema", "grammar"))
            raise refusal_of(error, "response_format" if of_format else None) from error
        return found

    def _exchange(
        self, request: Request, body: B, job: Job, began: float, seed: int, prompt: int, pieces: Pieces
    ) -> Exchange[B]:
        service, top = self.service, top_of(body)
        choices = [_choice(body, index, service.tokenizer, top) for index in range(len(job.texts))]
        heading = Heading(service.name, service.fingerprint, seed if body.is_sampled else None, choices[0].prefix)
        return Exchange(service, request, body, began, choices, heading, Usage(prompt), pieces)


def _checked(model: CompiledModel, prompt: list[int], **keywords: Any) -> Asked:
    """Returns what to decode. Raises `ForerunError`, also for a grammar that steps could not follow."""
    [asked] = model.asked(prompt, **keywords)
    for hook in asked.request.hooks:
        if isinstance(hook, GrammarHook):
            hook.try_out(model.max_length)
    return asked


def prompts_of(tokenizer: Any, body: Body) -> Sequence[list[int]]:
    """Returns the token ids of a request's prompts. Raises `RefusedError`."""
    if isinstance(body, ChatBody):
        return [encoded_chat(tokenizer, body)]
    assert isinstance(body, CompletionBody)
    return [encoded(tokenizer, each, "prompt") if isinstance(each, str) else each for each in body.prompt]


def _choice(body: Body, index: int, tokenizer: Any, top: int | None) -> Choice:
    if isinstance(body, ChatBody):
        return ChatChoice(index, tokenizer, top, calls=bool(tools_of(body)))
    return CompletionChoice(index, tokenizer, top)


def refusal_of(error: Exception, param: str | None = None) -> RefusedError:
    """Returns what a client is told of an error: a sentence if it is the client's fault."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, NotANumberError):
        return RefusedError(str(error), None, "not_a_number", 500, "server_error")
    if isinstance(error, ForerunError):
        return RefusedError(str(error), param, "invalid_value")
    return broken(error)


async def _read(request: Request, most: int, until: float) -> bytes:
    """Returns a request's body, if it comes in time and is not too large."""
    too_large = RefusedError(
        f"the body has more than {most} bytes, the most that this server takes", None, "body_too_large", 413,
        headers={"Connection": "close"},
    )  # fmt: skip
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > most:
        raise too_large
    parts, size = list[bytes](), 0
    try:
        async with asyncio.timeout_at(until):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise RefusedError("the body did not come in time", None, "timeout", 408) from None
    return b"".join(parts)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Returns what `work` gives. Raises `ClientDisconnect` as soon as the client goes away."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(told: dict[str, Any]) -> str:
    return f"data: {json.dumps(told, ensure_ascii=False, allow_nan=False, separators=(',', ':'))}\n\n"
