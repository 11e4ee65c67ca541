"""Schedules: when the service submits runs by itself, and the outcome of each firing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from jobs.spec.kinds import Kind
from jobs.spec.limits import JitterSeconds, Priority, Revision
from jobs.store.adapters.manifest import Name
from orchestrator.registry.values import DEFAULT_CLUSTER
from orchestrator.schemas.base import RequestSchema, ResponseSchema, with_example

Concurrency = Literal["skip", "queue", "replace"]
Missed = Literal["skip", "latest", "all"]
CronText = Annotated[
    str, Field(min_length=1, max_length=200, pattern=r"^[ -~]+$", examples=["0 3 * * *"])
]
TimeZone = Annotated[str, Field(max_length=63, pattern=r"^[A-Za-z0-9_+/-]+$")]

SCHEDULE_EXAMPLE: dict[str, Any] = {
    "project": "default",
    "name": "nightly",
    "kind": "finetune",
    "cron": "0 3 * * *",
    "time_zone": "Europe/Berlin",
    "concurrency": "skip",
    "missed": "latest",
    "jitter_s": 0.0,
    "paused": False,
    "only_new_data": True,
    "cluster": "default",
    "priority": 0,
    "spec": {"name": "chat", "model": {"path": "/models/smollm2"}},
    "next_at": 1767322800.0,
    "by_token": "5d41402abc4b2a76",
    "by_label": "ci",
    "created_at": 1767236400.0,
    "revision": 1,
}


class CreateScheduleRequest(RequestSchema):
    """A schedule to create."""

    name: Name
    project: Name | None = None
    cron: CronText
    time_zone: TimeZone = "UTC"
    concurrency: Concurrency = "skip"
    missed: Missed = "latest"
    jitter_s: JitterSeconds = 0.0
    spec: dict[str, Any]
    """The spec that each firing submits."""
    kind: Kind = "retrain"
    only_new_data: bool = False
    """Fire only if data.train has changed since the last firing."""
    cluster: Name = DEFAULT_CLUSTER
    priority: Priority = 0


class UpdateScheduleRequest(RequestSchema):
    """The fields of a schedule to change; null leaves a field as it is."""

    revision: Revision | None = None
    """The revision that was read: if the schedule has changed since, the status is 409."""
    paused: bool | None = None
    cron: CronText | None = None
    time_zone: TimeZone | None = None
    concurrency: Concurrency | None = None
    missed: Missed | None = None
    jitter_s: JitterSeconds | None = None
    spec: dict[str, Any] | None = None
    only_new_data: bool | None = None
    cluster: Name | None = None
    priority: Priority | None = None


class ScheduleResponse(ResponseSchema):
    """A schedule. Send its `revision` with a change, so that no other change is overwritten.

    `by_token` is the id of the token that created it, `by_label` its label.
    """

    model_config = with_example(**SCHEDULE_EXAMPLE)

    project: str
    name: str
    kind: str
    cron: str
    time_zone: str
    concurrency: str
    missed: str
    jitter_s: float = 0.0
    paused: bool
    only_new_data: bool
    cluster: str
    priority: int
    spec: dict[str, Any]
    next_at: float | None = None
    by_token: str | None = None
    by_label: str | None = None
    created_at: float
    revision: int


class FiringResponse(ResponseSchema):
    """A firing and its outcome: run, queued, skipped, no_new_data, refused or over_quota."""

    model_config = with_example(
        due_at=1767322800.0, fired_at=1767322800.4, outcome="run", run="chat-20260102-030000-1f2e"
    )

    due_at: float
    fired_at: float
    outcome: str
    run: str | None = None
