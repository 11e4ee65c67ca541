"""The app: all routes of one service, its documents, and what is closed with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from orchestrator.api import problems
from orchestrator.api.auth import Authenticator
from orchestrator.api.middleware import BodyLimit, RequestMetrics
from orchestrator.api.routes import adapters, admin, health, runs, schedules, streams
from orchestrator.api.routes.admin import CapacityCache
from orchestrator.api.stream_hub import POLL_INTERVAL_S, StreamHub
from orchestrator.control.supervisor import Service

THREADS = 8
"""Requests at work at once; the registry's pool has a connection for each, and some to spare."""
READERS = 1
"""Pages that are read from SQLite at once: it gives the interpreter away at every row, and each of
several threads that want it back waits for all others. Another database is waited for: of it
`THREADS` are read."""
ABOUT = """Submit runs, follow them, keep what comes out.

Every answer that is no success is a problem document: what, where, the way out."""


def make_app(service: Service, *, poll_interval_s: float = POLL_INTERVAL_S) -> FastAPI:
    """The service's door; its hub has to be closed before a server waits for its streams.

    `every_s`: between two looks at a run that is followed.
    """
    app = FastAPI(
        title="slora", version=version("slora"), description=ABOUT, docs_url=None, redoc_url=None,
        lifespan=_lifespan,
        # A path with a slash too many is another path, not a redirect that drops the token.
        redirect_slashes=False,
    )  # fmt: skip
    app.state.service = service
    app.state.doorman = Authenticator(service.database)
    app.state.capacities = CapacityCache()
    app.state.hub = StreamHub(service.database, service.clusters, poll_interval_s=poll_interval_s)
    problems.install_handlers(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(RequestMetrics, observer=service.metrics)
    for router in (
        health.public_router,
        health.guarded_router,
        # Before the runs' own, whose last path would match them too.
        streams.router,
        runs.router,
        adapters.router,
        schedules.router,
        admin.router,
    ):
        app.include_router(router)
    _set_openapi(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    service: Service = app.state.service
    app.state.readers = CapacityLimiter(READERS if service.database.is_local else THREADS)
    yield
    hub: StreamHub = app.state.hub
    await hub.close()


def _set_openapi(app: FastAPI) -> None:
    """The document, made once: with the one way to be known, and problems in place of FastAPI's
    own form of a fault."""
    document: dict[str, Any] = {}

    def build_openapi() -> dict[str, Any]:
        if not document:
            schema = get_openapi(
                title=app.title, version=app.version, description=ABOUT, routes=app.routes
            )
            components = schema["components"]
            components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            components["schemas"].pop("HTTPValidationError", None)
            components["schemas"].pop("ValidationError", None)
            components["schemas"]["Problem"] = problems.build_schema(components["schemas"])
            document.update(schema)
        return document

    app.openapi = build_openapi  # type: ignore[method-assign]
