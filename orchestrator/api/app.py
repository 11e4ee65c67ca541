"""The app: all routes of a service, its OpenAPI document, and its lifespan."""

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
"""Concurrent requests; the registry's pool has a connection for each, and some to spare."""
READERS = 1
"""Pages that are read from SQLite at once. It releases the interpreter lock at every row, and
concurrent threads wait for each other to get it back. Other databases serve `THREADS` pages."""
DESCRIPTION = """Submit runs, follow them, and manage the resulting adapters.

Every response that is not a success is a problem document (RFC 9457)."""


def make_app(service: Service, *, poll_interval_s: float = POLL_INTERVAL_S) -> FastAPI:
    """Return the app of a service. A server has to close `app.state.hub` before its streams end.

    `poll_interval_s` is the interval between two polls of a run that is followed.
    """
    app = FastAPI(
        title="slora", version=version("slora"), description=DESCRIPTION,
        docs_url=None, redoc_url=None,
        lifespan=_lifespan,
        # A trailing slash makes another path: a redirect would drop the token.
        redirect_slashes=False,
    )  # fmt: skip
    app.state.service = service
    app.state.authenticator = Authenticator(service.database)
    app.state.capacities = CapacityCache()
    app.state.hub = StreamHub(service.database, service.clusters, poll_interval_s=poll_interval_s)
    problems.install_handlers(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(RequestMetrics, observer=service.metrics)
    for router in (
        health.public_router,
        health.guarded_router,
        # Before the routes of runs, whose last path would match these too.
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
    """Build the OpenAPI document once, with the security scheme, and with problem documents in
    place of FastAPI's validation errors."""
    document: dict[str, Any] = {}

    def build_openapi() -> dict[str, Any]:
        if not document:
            schema = get_openapi(
                title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes
            )
            components = schema["components"]
            components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            components["schemas"].pop("HTTPValidationError", None)
            components["schemas"].pop("ValidationError", None)
            components["schemas"]["Problem"] = problems.build_schema(components["schemas"])
            document.update(schema)
        return document

    app.openapi = build_openapi  # type: ignore[method-assign]
