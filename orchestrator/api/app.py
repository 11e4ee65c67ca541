"""The app: all routes of one service, its documents, and what is closed with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from orchestrator.api import adapters, admin, health, problems, runs, schedules, streams
from orchestrator.api.access import Doorman
from orchestrator.api.admin import Capacities
from orchestrator.api.hub import EVERY_S, Hub
from orchestrator.api.passages import Limited, Observed
from orchestrator.service.loop import Service

THREADS = 8
"""Requests at work at once; the registry's pool has a connection for each, and some to spare."""
READERS = 1
"""Pages that are read from SQLite at once: it gives the interpreter away at every row, and each of
several threads that want it back waits for all others. Another database is waited for: of it
`THREADS` are read."""
ABOUT = """Submit runs, follow them, keep what comes out.

Every answer that is no success is a problem document: what, where, the way out."""


def make_app(service: Service, *, every_s: float = EVERY_S) -> FastAPI:
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
    app.state.doorman = Doorman(service.database)
    app.state.capacities = Capacities()
    app.state.hub = Hub(service.database, service.clusters, every_s=every_s)
    problems.add_to(app)
    app.add_middleware(Limited)
    app.add_middleware(Observed, observer=service.observer)
    for router in (
        health.open_to_all,
        health.guarded,
        # Before the runs' own, whose last path would match them too.
        streams.router,
        runs.router,
        adapters.router,
        schedules.router,
        admin.router,
    ):
        app.include_router(router)
    _document(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    service: Service = app.state.service
    app.state.readers = CapacityLimiter(READERS if service.database.is_local else THREADS)
    yield
    hub: Hub = app.state.hub
    await hub.close()


def _document(app: FastAPI) -> None:
    """The document, made once: with the one way to be known, and problems in place of FastAPI's
    own form of a fault."""
    made: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not made:
            found = get_openapi(
                title=app.title, version=app.version, description=ABOUT, routes=app.routes
            )
            parts = found["components"]
            parts["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            parts["schemas"].pop("HTTPValidationError", None)
            parts["schemas"].pop("ValidationError", None)
            parts["schemas"]["Problem"] = problems.schema(parts["schemas"])
            made.update(found)
        return made

    app.openapi = openapi  # type: ignore[method-assign]
