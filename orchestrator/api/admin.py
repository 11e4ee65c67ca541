"""Routes of whoever runs the service: projects, clusters, tokens, and whose token this is."""

from __future__ import annotations

import time
from collections.abc import Callable

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request, Response

from jobs.errors import JobsError
from orchestrator.api.access import Asker, Doorman, Guarded, needs
from orchestrator.api.answers import (
    CapacityAnswer,
    ClusterAnswer,
    NewTokenAnswer,
    Page,
    ProjectAnswer,
    TokenAnswer,
)
from orchestrator.api.given import AskedProject, AskedToken, NamePath, ProjectChange, TokenPath
from orchestrator.api.parts import Behind, own_project
from orchestrator.api.problems import documented
from orchestrator.cluster.door import Cluster
from orchestrator.registry import projects, tokens
from orchestrator.registry.errors import LostUpdate, Unknown
from orchestrator.registry.values import Limits

FRESH_S = 5.0
"""That what a cluster said of itself is told to others too."""
ASKED_AT_ONCE = 4

router = APIRouter(prefix="/v1", tags=["service"], route_class=Guarded)


class Capacities:
    """What the clusters say they have, asked seldom: one that is gone costs its asker seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, tuple[ClusterAnswer, float]] = {}
        self._asking = CapacityLimiter(ASKED_AT_ONCE)

    async def of(self, cluster: Cluster) -> ClusterAnswer:
        """The cluster as it was a moment ago."""
        known = self._known.get(cluster.name)
        if known is None or self._clock() >= known[1]:
            found = await to_thread.run_sync(_asked, cluster, limiter=self._asking)
            self._known[cluster.name] = known = (found, self._clock() + FRESH_S)
        return known[0]


@router.get(
    "/me", response_model=TokenAnswer, responses=documented(), openapi_extra=needs("viewer")
)
async def me(
    who: Asker,
) -> TokenAnswer:
    """Whose token this is."""
    return TokenAnswer.model_validate(who.token)


@router.get(
    "/clusters",
    response_model=Page[ClusterAnswer],
    responses=documented(),
    openapi_extra=needs("viewer"),
)
async def clusters(
    service: Behind,
    request: Request,
) -> Page[ClusterAnswer]:
    """The clusters by name, whether they answer, and what they have."""
    capacities: Capacities = request.app.state.capacities
    found = [await capacities.of(one) for _, one in sorted(service.clusters.items())]
    return Page(items=found, next=None)


@router.get(
    "/projects",
    response_model=Page[ProjectAnswer],
    responses=documented(),
    openapi_extra=needs("viewer"),
)
def listed(
    who: Asker,
    service: Behind,
) -> Page[ProjectAnswer]:
    """The projects that the token sees, by name."""
    with service.database.read() as session:
        found = [one for one in projects.listed(session) if who.sees(one.name)]
    return Page(items=[ProjectAnswer.model_validate(one) for one in found], next=None)


@router.post(
    "/projects",
    status_code=201,
    response_model=ProjectAnswer,
    responses=documented(409),
    openapi_extra=needs("admin", all_projects=True),
)
def add(
    service: Behind,
    asked: AskedProject,
) -> ProjectAnswer:
    """Make a project."""
    limits = Limits(**asked.model_dump(exclude={"name"}))
    with service.database.write() as session:
        return ProjectAnswer.model_validate(projects.add(session, asked.name, limits))


@router.patch(
    "/projects/{name}",
    response_model=ProjectAnswer,
    responses=documented(404, 409),
    openapi_extra=needs("admin", all_projects=True),
)
def change(
    service: Behind,
    name: NamePath,
    asked: ProjectChange,
) -> ProjectAnswer:
    """Set what a project may use."""
    with service.database.write() as session:
        there = projects.project(session, name)
        if asked.revision is not None and asked.revision != there.revision:
            raise LostUpdate(f"project {name}", asked.revision, there.revision)
        kept = {limit: getattr(there, limit) for limit in Limits.model_fields}
        named = asked.model_dump(include=asked.model_fields_set - {"revision"})
        changed = projects.set_limits(session, there, Limits(**{**kept, **named}))
        return ProjectAnswer.model_validate(changed)


@router.get(
    "/tokens",
    response_model=Page[TokenAnswer],
    responses=documented(),
    openapi_extra=needs("admin"),
)
def tokens_listed(
    who: Asker,
    service: Behind,
) -> Page[TokenAnswer]:
    """The tokens of the asker's project, or all; dead ones too, no secrets."""
    with service.database.read() as session:
        found = [one for one in tokens.tokens(session) if who.project in (None, one.project)]
    return Page(items=[TokenAnswer.model_validate(one) for one in found], next=None)


@router.post(
    "/tokens",
    status_code=201,
    response_model=NewTokenAnswer,
    responses=documented(404),
    openapi_extra=needs("admin"),
)
def issue(
    who: Asker,
    service: Behind,
    asked: AskedToken,
    response: Response,
) -> NewTokenAnswer:
    """Make a token. Its secret is shown this once."""
    project = asked.project or who.project
    if project is not None:
        project = own_project(service, who, project)
    with service.database.write() as session:
        made, secret = tokens.issue(
            session, asked.label, asked.scope, project=project, seconds=asked.seconds
        )
    response.headers["Cache-Control"] = "no-store"
    return NewTokenAnswer(**TokenAnswer.model_validate(made).model_dump(), secret=secret)


@router.delete(
    "/tokens/{token}",
    status_code=204,
    response_class=Response,
    responses=documented(404),
    openapi_extra=needs("admin"),
)
def revoke(
    who: Asker,
    service: Behind,
    token: TokenPath,
    request: Request,
) -> Response:
    """From now on nobody is known by it."""
    with service.database.write() as session:
        there = tokens.get(session, token)
        if who.project is not None and there.project != who.project:
            raise Unknown("token", token)
        tokens.revoke(session, token)
    doorman: Doorman = request.app.state.doorman
    doorman.forget()
    return Response(status_code=204)


def _asked(cluster: Cluster) -> ClusterAnswer:
    try:
        capacity = CapacityAnswer.model_validate(cluster.capacity())
    except JobsError:
        return ClusterAnswer(name=cluster.name, up=False, capacity=None)
    return ClusterAnswer(name=cluster.name, up=True, capacity=capacity)
