"""Routes for monitoring: liveness, readiness, metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import text

from orchestrator.api.auth import AuthenticatedRoute, requires_scope
from orchestrator.api.deps import ServiceDep
from orchestrator.api.problems import describe_problems, make_problem
from orchestrator.schemas.admin import HealthResponse

public_router = APIRouter(tags=["health"])
guarded_router = APIRouter(tags=["health"], route_class=AuthenticatedRoute)


@public_router.get("/healthz", response_model=HealthResponse, responses=describe_problems())
async def check_health(
    service: ServiceDep,
) -> HealthResponse | Response:
    """Report that the process works, or 503 if it has to be restarted."""
    if not service.is_alive:
        return make_problem(503, "A thread of the service has stopped. See the log of the service.")
    late = service.health.find_late_loops()
    if late:
        loops = ", ".join(f"{loop} ({age:.0f} s)" for loop, age in late.items())
        return make_problem(503, f"A loop of the service makes no progress: {loops}.")
    return HealthResponse(status="ok")


@public_router.get("/readyz", response_model=HealthResponse, responses=describe_problems())
def check_readiness(
    service: ServiceDep,
) -> HealthResponse | Response:
    """Report that the service can answer requests, which reads and writes its database."""
    with service.database.read() as session:
        session.execute(text("SELECT 1"))
    if not service.write_probe.check():
        return make_problem(503, "The service's database cannot be written.")
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
    """Return the metrics of the service in the format of Prometheus."""
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
