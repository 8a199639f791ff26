"""The ASGI application of a server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from forerun.server.bodies import ChatBody, CompletionBody
from forerun.server.endpoints import Endpoint
from forerun.server.guard import Guard
from forerun.server.metrics import GONE, Counting
from forerun.server.page import served_page
from forerun.server.refusals import RefusedError, on_bug, on_http, on_refused
from forerun.server.service import Service


def application(service: Service, key: str | None = None, local: bool = True) -> Starlette:
    """Returns the application. It decodes between the startup and the shutdown of its lifespan.

    key     what clients must send, if anything
    local   whether it is for this machine alone
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        service.decoding.start()
        with service.model.serving.listening(service.metrics.listen):
            try:
                yield
            finally:
                service.close()

    page, policy = served_page(service.name)

    async def index(_: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})

    async def health(_: Request) -> Response:
        drains = service.admission.draining
        return JSONResponse({"status": "draining" if drains else "ok"}, 503 if drains else 200)

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    described = {"id": service.name, "object": "model", "created": service.created, "owned_by": "forerun"}

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [described]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != service.name:
            raise RefusedError(f"this server has the model {service.name!r} alone", "model", "model_not_found", 404)
        return JSONResponse(described)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=GONE)  # nobody reads it

    routes = [
        Route("/", index),
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/completions", Endpoint(service, CompletionBody), methods=["POST"]),
        Route("/v1/chat/completions", Endpoint(service, ChatBody), methods=["POST"]),
    ]
    paths = frozenset(route.path for route in routes)
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Counting, service.metrics, paths), Middleware(Guard, key, local)],
        exception_handlers={
            RefusedError: on_refused,
            HTTPException: on_http,
            ClientDisconnect: gone,
            Exception: on_bug,
        },
    )
