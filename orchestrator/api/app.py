"""The app of a service: its routes with their state, and its lifespan."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI

from orchestrator.api.auth import Authenticator
from orchestrator.api.connections import ConnectionTable, ConnectionWatch
from orchestrator.api.document import make_routes
from orchestrator.api.middleware import BodyLimit, RequestMetrics
from orchestrator.api.rate_limits import RequestLimit, RequestLimits
from orchestrator.api.request_ids import RequestIds
from orchestrator.api.routes.admin import CapacityCache
from orchestrator.api.stream_hub import POLL_INTERVAL_S, StreamHub
from orchestrator.control.supervisor import Service

THREADS = 8
"""Concurrent requests; the registry's pool has a connection for each, and some to spare."""
READERS = 1
"""Pages that are read from SQLite at once. It releases the interpreter lock at every row, and
concurrent threads wait for each other to get it back. Other databases serve `THREADS` pages."""


def make_app(service: Service, *, poll_interval_s: float = POLL_INTERVAL_S) -> FastAPI:
    """Return the app of a service. A server has to close `app.state.hub` before its streams end.

    `poll_interval_s` is the interval between two polls of a run that is followed.
    """
    app = make_routes(_lifespan)
    app.state.service = service
    authenticator = app.state.authenticator = Authenticator(service.database)
    app.state.connections = ConnectionTable(service.config.http)
    limits = app.state.limits = RequestLimits(service.config.http)
    app.state.capacities = CapacityCache()
    app.state.hub = StreamHub(service.database, service.clusters, poll_interval_s=poll_interval_s)
    app.add_middleware(BodyLimit, timeout_s=service.config.http.body_timeout_s)
    app.add_middleware(RequestLimit, limits=limits, authenticator=authenticator)
    app.add_middleware(RequestMetrics, observer=service.metrics)
    app.add_middleware(ConnectionWatch)
    # Outermost, so that the answers of the other middleware have an id too.
    app.add_middleware(RequestIds)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    service: Service = app.state.service
    app.state.readers = CapacityLimiter(READERS if service.database.is_local else THREADS)
    yield
    hub: StreamHub = app.state.hub
    await hub.close()
