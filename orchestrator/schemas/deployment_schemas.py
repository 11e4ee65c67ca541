"""Deployments: names on inference servers that follow adapters."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from jobs.spec.limits import VersionNumber
from jobs.store.adapters.manifest import Name
from orchestrator.deployments.deployment_record import CanarySettings
from orchestrator.schemas.base import RequestSchema, ResponseSchema, with_example

DEPLOYMENT_EXAMPLE: dict[str, Any] = {
    "project": "default",
    "store": "s3://models/slora",
    "name": "chat",
    "adapter": "chat",
    "pin": None,
    "endpoint": "local",
    "model": "chat",
    "status": "live",
    "live": 3,
    "previous": 2,
    "step": None,
    "version": None,
    "declined": None,
    "problem": None,
    "updated": "2026-01-01T12:00:00Z",
}
EVENT_EXAMPLE: dict[str, Any] = {
    "when": "2026-01-01T12:00:00Z",
    "event": "live",
    "version": 3,
    "detail": "answers 3, slowest_s 0.4, loss 2.01, run_loss 2.01",
    "by": "",
}


class CreateDeploymentRequest(RequestSchema):
    """An adapter to deploy. A deployment of this name is changed, and tries again."""

    adapter: Name
    version: VersionNumber | None = None
    """The version to stay at; null follows the adapter's pointer."""
    endpoint: Name
    """An endpoint of the service's configuration."""
    name: Name | None = None
    """The public name; null is the adapter's."""
    project: Name | None = None
    store: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[ -~]+$")] | None = None
    canary: CanarySettings = CanarySettings()


class DeploymentEventResponse(ResponseSchema):
    """Something that happened to a deployment."""

    model_config = with_example(**EVENT_EXAMPLE)

    when: str
    event: str
    version: int | None = None
    detail: str
    by: str


class DeclinedResponse(ResponseSchema):
    """A version that is not tried again until the pointer moves or somebody deploys again."""

    model_config = with_example(version=4, reason="the answer to prompt 1 is empty")

    version: int
    reason: str


class DeploymentResponse(ResponseSchema):
    """A deployment. `step` and `version` are those of a rollout that runs."""

    model_config = with_example(**DEPLOYMENT_EXAMPLE)

    project: str
    store: str
    name: str
    adapter: str
    pin: int | None = None
    endpoint: str
    model: str | None = None
    status: str
    live: int | None = None
    previous: int | None = None
    step: str | None = None
    version: int | None = None
    declined: DeclinedResponse | None = None
    problem: str | None = None
    updated: str


class DeploymentDetailResponse(DeploymentResponse):
    """A deployment with its canary and its history, the oldest event first."""

    model_config = with_example(
        **DEPLOYMENT_EXAMPLE,
        canary={"prompts": ["Hello"], "max_latency_s": 30.0, "loss_tolerance": 0.05},
        history=[EVENT_EXAMPLE],
    )

    canary: dict[str, Any]
    history: list[DeploymentEventResponse]
