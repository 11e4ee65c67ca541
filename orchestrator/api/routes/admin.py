"""Routes for administrators: projects, clusters and tokens."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request, Response

from jobs.errors import JobsError
from jobs.spec.strict_model import StrictModel
from orchestrator.api.audit_values import record_project, record_token
from orchestrator.api.auth import (
    AuthenticatedRoute,
    Authenticator,
    CurrentPrincipal,
    requires_scope,
)
from orchestrator.api.deps import CurrentActor, ServiceDep, resolve_project
from orchestrator.api.parameters import NamePath, TokenPath
from orchestrator.api.problems import describe_problems
from orchestrator.cluster.base import Cluster
from orchestrator.registry import projects, tokens
from orchestrator.registry.errors import LostUpdate, UnknownItem
from orchestrator.registry.tenancy import quotas
from orchestrator.registry.usage import ProjectUsage, measure_usage
from orchestrator.registry.values import Project, ProjectInputs, ProjectLimits
from orchestrator.schemas.admin import (
    CapacityResponse,
    ClusterResponse,
    CreateProjectRequest,
    CreateTokenRequest,
    NewTokenResponse,
    ProjectDetailResponse,
    ProjectResponse,
    TokenResponse,
    UpdateProjectRequest,
    UsageResponse,
)
from orchestrator.schemas.base import Page

CAPACITY_CACHE_S = 5.0
"""Age up to which the capacity of a cluster is answered from the cache."""
MAX_CONCURRENT_QUERIES = 4

router = APIRouter(prefix="/v1", tags=["service"], route_class=AuthenticatedRoute)


class CapacityCache:
    """Cache of the clusters' capacities: querying an unreachable cluster takes seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._cache: dict[str, tuple[ClusterResponse, float]] = {}
        self._limiter = CapacityLimiter(MAX_CONCURRENT_QUERIES)

    async def get(self, cluster: Cluster) -> ClusterResponse:
        """Return the state of the cluster, at most CAPACITY_CACHE_S old."""
        cached = self._cache.get(cluster.name)
        if cached is None or self._clock() >= cached[1]:
            response = await to_thread.run_sync(_query_cluster, cluster, limiter=self._limiter)
            self._cache[cluster.name] = cached = (response, self._clock() + CAPACITY_CACHE_S)
        return cached[0]


@router.get(
    "/me",
    responses=describe_problems(),
    openapi_extra=requires_scope("viewer"),
)
async def get_me(
    principal: CurrentPrincipal,
) -> TokenResponse:
    """Return the token of the request."""
    return TokenResponse.model_validate(principal.token)


@router.get(
    "/clusters",
    responses=describe_problems(),
    openapi_extra=requires_scope("viewer"),
)
async def list_clusters(
    service: ServiceDep,
    request: Request,
) -> Page[ClusterResponse]:
    """Return the clusters, sorted by name, with their capacity if they answer."""
    capacities: CapacityCache = request.app.state.capacities
    responses = [await capacities.get(cluster) for _, cluster in sorted(service.clusters.items())]
    return Page(items=responses, next=None)


@router.get(
    "/projects",
    responses=describe_problems(),
    openapi_extra=requires_scope("viewer"),
)
def list_projects(
    principal: CurrentPrincipal,
    service: ServiceDep,
) -> Page[ProjectResponse]:
    """Return the projects that the token covers, sorted by name."""
    with service.database.read() as session:
        visible = [
            project
            for project in projects.list_projects(session)
            if principal.can_access(project.name)
        ]
    return Page(items=[ProjectResponse.model_validate(project) for project in visible], next=None)


@router.post(
    "/projects",
    status_code=201,
    responses=describe_problems(409),
    openapi_extra=requires_scope("admin", all_projects=True),
)
def create_project(
    service: ServiceDep,
    actor: CurrentActor,
    body: CreateProjectRequest,
) -> ProjectResponse:
    """Create a project."""
    limits = ProjectLimits(**body.model_dump(include=set(ProjectLimits.model_fields)))
    inputs = ProjectInputs(**body.model_dump(include=set(ProjectInputs.model_fields)))
    with service.database.write() as session:
        project = projects.add(session, body.name, limits, inputs)
        record_project(session, actor, None, project)
    return ProjectResponse.model_validate(project)


@router.get(
    "/projects/{name}",
    responses=describe_problems(404),
    openapi_extra=requires_scope("viewer"),
)
def get_project(
    principal: CurrentPrincipal,
    service: ServiceDep,
    name: NamePath,
) -> ProjectDetailResponse:
    """Return a project with its limits and what it uses."""
    if not principal.can_access(name):
        raise UnknownItem("project", name)
    with service.database.read() as session:
        project = ProjectResponse.model_validate(projects.get(session, name))
        used = measure_usage(session, project=name).get(name, ProjectUsage())
        counts = {
            "queued": quotas.count_unfinished(session, name),
            "schedules": quotas.count_schedules(session, name),
        }
    usage = {key: value for key, value in vars(used).items() if key in UsageResponse.model_fields}
    return ProjectDetailResponse(**project.model_dump(), usage=UsageResponse(**usage, **counts))


@router.patch(
    "/projects/{name}",
    responses=describe_problems(404, 409),
    openapi_extra=requires_scope("admin", all_projects=True),
)
def update_project(
    service: ServiceDep,
    actor: CurrentActor,
    name: NamePath,
    body: UpdateProjectRequest,
) -> ProjectResponse:
    """Change the limits of a project, and what its runs may read."""
    with service.database.write() as session:
        project = projects.get(session, name)
        if body.revision is not None and body.revision != project.revision:
            raise LostUpdate(f"project {name}", body.revision, project.revision)
        changes = body.model_dump(include=body.model_fields_set - {"revision"})
        limits = ProjectLimits(**_apply_changes(project, changes, ProjectLimits))
        inputs = ProjectInputs(**_apply_changes(project, changes, ProjectInputs))
        updated = projects.set_limits(session, project, limits, inputs)
        record_project(session, actor, project, updated)
    return ProjectResponse.model_validate(updated)


@router.get(
    "/tokens",
    responses=describe_problems(),
    openapi_extra=requires_scope("admin"),
)
def list_tokens(
    principal: CurrentPrincipal,
    service: ServiceDep,
) -> Page[TokenResponse]:
    """Return the tokens of the caller's project, or all; expired and revoked ones included."""
    with service.database.read() as session:
        visible = [
            token
            for token in tokens.list_tokens(session)
            if principal.project in (None, token.project)
        ]
    return Page(items=[TokenResponse.model_validate(token) for token in visible], next=None)


@router.post(
    "/tokens",
    status_code=201,
    responses=describe_problems(404),
    openapi_extra=requires_scope("admin"),
)
def create_token(
    principal: CurrentPrincipal,
    service: ServiceDep,
    actor: CurrentActor,
    body: CreateTokenRequest,
    response: Response,
) -> NewTokenResponse:
    """Create a token. No other response contains its secret."""
    project = body.project or principal.project
    if project is not None:
        project = resolve_project(service, principal, project)
    with service.database.write() as session:
        token, secret = tokens.issue(
            session, body.label, body.scope, project=project, seconds=body.seconds
        )
        record_token(session, actor, None, token)
    response.headers["Cache-Control"] = "no-store"
    return NewTokenResponse(**TokenResponse.model_validate(token).model_dump(), secret=secret)


@router.delete(
    "/tokens/{token}",
    status_code=204,
    response_class=Response,
    responses=describe_problems(404),
    openapi_extra=requires_scope("admin"),
)
def revoke_token(
    principal: CurrentPrincipal,
    service: ServiceDep,
    actor: CurrentActor,
    token: TokenPath,
    request: Request,
) -> Response:
    """Revoke a token, with immediate effect."""
    with service.database.write() as session:
        stored = tokens.get(session, token)
        if principal.project is not None and stored.project != principal.project:
            raise UnknownItem("token", token)
        record_token(session, actor, stored, tokens.revoke(session, token))
    authenticator: Authenticator = request.app.state.authenticator
    authenticator.clear_cache()
    return Response(status_code=204)


def _apply_changes(
    project: Project, changes: dict[str, Any], part: type[StrictModel]
) -> dict[str, Any]:
    """Return the fields of a part of a project, with the changes to them."""
    return {name: changes.get(name, getattr(project, name)) for name in part.model_fields}


def _query_cluster(cluster: Cluster) -> ClusterResponse:
    try:
        capacity = CapacityResponse.model_validate(cluster.get_capacity())
    except JobsError:
        return ClusterResponse(name=cluster.name, up=False, capacity=None)
    return ClusterResponse(name=cluster.name, up=True, capacity=capacity)
