"""Runs: what is submitted, and what the service answers about a run and its attempts."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from jobs.spec.kinds import Kind
from jobs.store.adapters.manifest import Name
from orchestrator.registry.lifecycle import FINAL
from orchestrator.registry.values import DEFAULT_CLUSTER
from orchestrator.schemas.base import RequestSchema, ResponseSchema, with_example

Priority = Annotated[int, Field(ge=-1000, le=1000)]

SPEC_EXAMPLE: dict[str, Any] = {
    "name": "chat",
    "model": {"path": "/models/smollm2"},
    "data": {"train": "/data/chat.jsonl", "eval_fraction": 0.05},
    "train": {"steps": 60, "batch_size": 8},
}
RUN_EXAMPLE: dict[str, Any] = {
    "id": "chat-20260101-030000-1f2e",
    "project": "default",
    "kind": "finetune",
    "name": "chat",
    "store": "s3://models/slora",
    "cluster": "default",
    "status": "running",
    "reason": None,
    "detail": "",
    "attempt": 1,
    "workers": 2,
    "priority": 0,
    "tokens": 61440,
    "search": None,
    "stop": None,
    "wait_reason": "",
    "not_before": None,
    "spec_sha256": "9f" * 32,
    "created_at": 1767236400.0,
    "updated_at": 1767236410.5,
    "revision": 3,
}
ATTEMPT_EXAMPLE: dict[str, Any] = {
    "number": 1,
    "submission": "chat-20260101-030000-1f2e-a1",
    "cluster": "default",
    "status": "running",
    "reason": None,
    "created_at": 1767236401.0,
    "ended_at": None,
    "acknowledged_at": 1767236401.2,
}


class SubmitRunRequest(RequestSchema):
    """A run to submit. Without a project it belongs to the token's project, or to `default`."""

    model_config = with_example(kind="finetune", spec=SPEC_EXAMPLE, priority=5)

    kind: Kind = "finetune"
    spec: dict[str, Any]
    """The spec as in its YAML file, with absolute paths."""
    project: Name | None = None
    cluster: Name = DEFAULT_CLUSTER
    priority: Priority = 0


class RunResponse(ResponseSchema):
    """A run. `wait_reason` says why a planned run is not submitted yet, `stop` who stopped it."""

    model_config = with_example(**RUN_EXAMPLE)

    id: str
    project: str
    kind: str
    name: str
    store: str
    cluster: str
    status: str
    reason: str | None = None
    detail: str = ""
    attempt: int
    workers: int
    priority: int
    tokens: int | None = None
    search: str | None = None
    stop: str | None = None
    wait_reason: str = ""
    not_before: float | None = None
    spec_sha256: str | None = None
    created_at: float
    updated_at: float
    revision: int

    @property
    def is_final(self) -> bool:
        """Return whether the run has ended for good."""
        return self.status in FINAL


class AttemptResponse(ResponseSchema):
    """An attempt of a run on a cluster."""

    model_config = with_example(**ATTEMPT_EXAMPLE)

    number: int
    submission: str
    cluster: str
    status: str
    reason: str | None = None
    created_at: float
    ended_at: float | None = None
    acknowledged_at: float | None = None


class RunDetailResponse(RunResponse):
    """A run with its attempts, the oldest first."""

    model_config = with_example(**RUN_EXAMPLE, attempts=[ATTEMPT_EXAMPLE])

    attempts: list[AttemptResponse]


class CheckResponse(ResponseSchema):
    """The result of a validation; `tokens` is null if it depends on the number of rows."""

    model_config = with_example(
        kind="finetune",
        name="chat",
        store="s3://models/slora",
        workers=2,
        tokens=61440,
        data="s3://data/chat.jsonl",
    )

    kind: str
    name: str
    store: str
    workers: int
    tokens: int | None = None
    data: str
