"""Routes for administrators: projects, clusters and tokens."""

from __future__ import annotations

import time
from collections.abc import Callable

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request, Response

from jobs.errors import JobsError
from orchestrator.api.auth import (
    AuthenticatedRoute,
    Authenticator,
    CurrentPrincipal,
    requires_scope,
)
from orchestrator.api.deps import ServiceDep, resolve_project
from orchestrator.api.parameters import NamePath, TokenPath
from orchestrator.api.problems import describe_problems
from orchestrator.cluster.base import Cluster
from orchestrator.registry import projects, tokens
from orchestrator.registry.errors import LostUpdate, UnknownItem
from orchestrator.registry.values import ProjectLimits
from orchestrator.schemas.admin import (
    CapacityResponse,
    ClusterResponse,
    CreateProjectRequest,
    CreateTokenRequest,
    NewTokenResponse,
    ProjectResponse,
    TokenResponse,
    UpdateProjectRequest,
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
    body: CreateProjectRequest,
) -> ProjectResponse:
    """Create a project."""
    limits = ProjectLimits(**body.model_dump(exclude={"name"}))
    with service.database.write() as session:
        return ProjectResponse.model_validate(projects.add(session, body.name, limits))


@router.patch(
    "/projects/{name}",
    responses=describe_problems(404, 409),
    openapi_extra=requires_scope("admin", all_projects=True),
)
def update_project(
    service: ServiceDep,
    name: NamePath,
    body: UpdateProjectRequest,
) -> ProjectResponse:
    """Change the limits of a project."""
    with service.database.write() as session:
        project = projects.get(session, name)
        if body.revision is not None and body.revision != project.revision:
            raise LostUpdate(f"project {name}", body.revision, project.revision)
        current = {limit: getattr(project, limit) for limit in ProjectLimits.model_fields}
        changes = body.model_dump(include=body.model_fields_set - {"revision"})
        updated = projects.set_limits(session, project, ProjectLimits(**{**current, **changes}))
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
    token: TokenPath,
    request: Request,
) -> Response:
    """Revoke a token, with immediate effect."""
    with service.database.write() as session:
        stored = tokens.get(session, token)
        if principal.project is not None and stored.project != principal.project:
            raise UnknownItem("token", token)
        tokens.revoke(session, token)
    authenticator: Authenticator = request.app.state.authenticator
    authenticator.clear_cache()
    return Response(status_code=204)


def _query_cluster(cluster: Cluster) -> ClusterResponse:
    try:
        capacity = CapacityResponse.model_validate(cluster.get_capacity())
    except JobsError:
        return ClusterResponse(name=cluster.name, up=False, capacity=None)
    return ClusterResponse(name=cluster.name, up=True, capacity=capacity)
