"""Projects, tokens, clusters and health."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from jobs.store.adapters.manifest import Name
from orchestrator.registry.values import ProjectLimits
from orchestrator.schemas.base import RequestSchema, ResponseSchema, with_example
from orchestrator.schemas.schedules import Revision

YEAR_S = 366 * 86400.0

PROJECT_EXAMPLE: dict[str, Any] = {
    "name": "default",
    "max_runs": 10,
    "max_workers": None,
    "max_tokens_a_day": None,
    "created_at": 1767236400.0,
    "revision": 1,
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


class CreateProjectRequest(ProjectLimits):
    """A project to create; a limit of null means no limit."""

    name: Name


class UpdateProjectRequest(ProjectLimits):
    """The limits to change: a missing limit stays as it is, null removes it."""

    revision: Revision | None = None
    """The revision that was read: if the project has changed since, the status is 409."""


class ProjectResponse(ResponseSchema):
    """A project and its limits; null means no limit."""

    model_config = with_example(**PROJECT_EXAMPLE)

    name: str
    max_runs: int | None = None
    max_workers: int | None = None
    max_tokens_a_day: int | None = None
    created_at: float
    revision: int


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
