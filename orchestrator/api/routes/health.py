"""Routes for those who watch over the service: alive, ready, metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import text

from orchestrator.api.auth import AuthenticatedRoute, requires_scope
from orchestrator.api.deps import ServiceDep
from orchestrator.api.problems import describe_problems, make_problem
from orchestrator.api.responses import HealthResponse

public_router = APIRouter(tags=["health"])
guarded_router = APIRouter(tags=["health"], route_class=AuthenticatedRoute)


@public_router.get("/healthz", response_model=HealthResponse, responses=describe_problems())
async def check_health(
    service: ServiceDep,
) -> HealthResponse | Response:
    """Whether the process is at work: where not, it should be started anew."""
    if not service.is_alive:
        return make_problem(503, "A thread of the service has ended. Its log says why.")
    return HealthResponse(status="ok")


@public_router.get("/readyz", response_model=HealthResponse, responses=describe_problems())
def check_readiness(
    service: ServiceDep,
) -> HealthResponse | Response:
    """Whether it can answer now: its database does."""
    with service.database.read() as session:
        session.execute(text("SELECT 1"))
    return HealthResponse(status="ok")


@guarded_router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **describe_problems()},
    openapi_extra=requires_scope("viewer", all_projects=True),
)
def render_metrics(
    service: ServiceDep,
) -> Response:
    """What the service tells of itself, for Prometheus."""
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
