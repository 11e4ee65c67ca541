"""Routes for those who watch over the service: alive, ready, metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import text

from orchestrator.api.access import Guarded, needs
from orchestrator.api.answers import Health
from orchestrator.api.parts import Behind
from orchestrator.api.problems import documented, problem

open_to_all = APIRouter(tags=["health"])
guarded = APIRouter(tags=["health"], route_class=Guarded)


@open_to_all.get("/healthz", response_model=Health, responses=documented())
async def healthz(
    service: Behind,
) -> Health | Response:
    """Whether the process is at work: where not, it should be started anew."""
    if not service.alive:
        return problem(503, "A thread of the service has ended. Its log says why.")
    return Health(status="ok")


@open_to_all.get("/readyz", response_model=Health, responses=documented())
def readyz(
    service: Behind,
) -> Health | Response:
    """Whether it can answer now: its database does."""
    with service.database.read() as session:
        session.execute(text("SELECT 1"))
    return Health(status="ok")


@guarded.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **documented()},
    openapi_extra=needs("viewer", all_projects=True),
)
def metrics(
    service: Behind,
) -> Response:
    """What the service tells of itself, for Prometheus."""
    return Response(generate_latest(service.observer.registry), media_type=CONTENT_TYPE_LATEST)
