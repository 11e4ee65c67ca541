"""Projects, tokens, clusters and health."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from jobs.spec.limits import Revision
from jobs.store.adapters.manifest import Name
from orchestrator.registry.values import ProjectInputs, ProjectLimits
from orchestrator.schemas.base import RequestSchema, ResponseSchema, with_example

YEAR_S = 366 * 86400.0

PROJECT_EXAMPLE: dict[str, Any] = {
    "name": "default",
    "max_runs": 10,
    "max_workers": None,
    "max_tokens_a_day": None,
    "places": ["s3://data/lab", "/data/lab"],
    "models": ["/models/smollm2", "org/*"],
    "max_queued": 100,
    "max_schedules": 20,
    "max_cpus": 64,
    "max_gpus": 8,
    "max_stored_bytes": None,
    "max_priority": 10,
    "created_at": 1767236400.0,
    "revision": 1,
}
USAGE_EXAMPLE: dict[str, Any] = {
    "runs": 2,
    "workers": 4,
    "cpus": 16,
    "gpus": 4,
    "tokens": 1228800,
    "queued": 12,
    "schedules": 3,
    "stored_bytes": 104857600,
}
TOKEN_EXAMPLE: dict[str, Any] = {
    "id": "5d41402abc4b2a76",
    "label": "ci",
    "scope": "submitter",
    "project": "default",
    "created_at": 1767236400.0,
    "expires_at": None,
    "revoked_at": None,
}


class CreateProjectRequest(ProjectLimits, ProjectInputs):
    """A project to create; a limit of null means no limit, and places of null mean anything."""

    name: Name


class UpdateProjectRequest(ProjectLimits, ProjectInputs):
    """The fields to change: a missing one stays as it is, null removes the limit."""

    revision: Revision | None = None
    """The revision that was read: if the project has changed since, the status is 409."""


class ProjectResponse(ResponseSchema):
    """A project, its limits and what its runs may read; null means no limit, or anything."""

    model_config = with_example(**PROJECT_EXAMPLE)

    name: str
    max_runs: int | None = None
    max_workers: int | None = None
    max_tokens_a_day: int | None = None
    places: list[str] | None = None
    models: list[str] | None = None
    max_queued: int | None = None
    max_schedules: int | None = None
    max_cpus: int | None = None
    max_gpus: int | None = None
    max_stored_bytes: int | None = None
    max_priority: int | None = None
    created_at: float
    revision: int


class UsageResponse(ResponseSchema):
    """What a project uses: at once, and in 24 hours its `tokens`."""

    model_config = with_example(**USAGE_EXAMPLE)

    runs: int
    workers: int
    cpus: int
    gpus: int
    tokens: int
    queued: int
    """Runs that have not ended, running ones included."""
    schedules: int
    stored_bytes: int


class ProjectDetailResponse(ProjectResponse):
    """A project, its limits and what it uses."""

    model_config = with_example(**PROJECT_EXAMPLE, usage=USAGE_EXAMPLE)

    usage: UsageResponse


class CreateTokenRequest(RequestSchema):
    """A token to create. Without a project it covers the caller's own project, or all of them."""

    label: Name
    scope: Literal["viewer", "submitter", "admin"]
    project: Name | None = None
    seconds: Annotated[float, Field(gt=0, le=10 * YEAR_S)] | None = None
    """Seconds until the token expires; without it, the token never expires."""


class TokenResponse(ResponseSchema):
    """A token without its secret; `project` is null if it covers all projects."""

    model_config = with_example(**TOKEN_EXAMPLE)

    id: str
    label: str
    scope: str
    project: str | None = None
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None


class NewTokenResponse(TokenResponse):
    """A new token with its secret, which no other response contains."""

    model_config = with_example(**TOKEN_EXAMPLE, secret="slora_…")

    secret: str = Field(repr=False)


class CapacityResponse(ResponseSchema):
    """The resources of a whole cluster, and how much of them is free."""

    model_config = with_example(
        cpus=8.0, gpus=1.0, free_cpus=6.0, free_gpus=0.0, nodes=2, node_memory=17179869184
    )

    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float
    nodes: int
    node_memory: int | None = None


class ClusterResponse(ResponseSchema):
    """A cluster; `capacity` is null if it does not answer."""

    model_config = with_example(name="default", up=True, capacity=None)

    name: str
    up: bool
    capacity: CapacityResponse | None = None


class HealthResponse(ResponseSchema):
    """The state of a healthy service."""

    model_config = with_example(status="ok")

    status: str
