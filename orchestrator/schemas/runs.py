"""Runs: what is submitted, and what the service answers about a run and its attempts."""

from __future__ import annotations

from typing import Any

from jobs.spec.kinds import Kind
from jobs.spec.limits import Priority
from jobs.store.adapters.manifest import Name
from orchestrator.registry.lifecycle import FINAL
from orchestrator.registry.values import DEFAULT_CLUSTER
from orchestrator.schemas.base import RequestSchema, ResponseSchema, with_example

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
    "by_token": "5d41402abc4b2a76",
    "by_label": "ci",
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


START_EXAMPLE: dict[str, Any] = {
    "attempt": 1,
    "since": 1767236400.0,
    "wait_s": 7.5,
    "complete": True,
    "phases": {"queue": 1.5, "check": 1.0, "processes": 2.0, "imports": 2.0, "first_step": 1.0},
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
    """A run. `wait_reason` says why a planned run is not submitted yet, `stop` who stopped it.

    `by_token` is the id of the token that submitted it or made its schedule, `by_label` its label.
    """

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
    by_token: str | None = None
    by_label: str | None = None
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


class StartResponse(ResponseSchema):
    """The start of an attempt, or of workers that were restarted: the seconds of its phases.

    They sum to `wait_s`: from the submission, or where it was restarted from `since`, to the end of
    the first optimizer step if `complete`, else so far.
    """

    model_config = with_example(**START_EXAMPLE)

    attempt: int
    since: float
    wait_s: float
    complete: bool
    phases: dict[str, float]


class StartsResponse(ResponseSchema):
    """The starts of a run, the oldest first, as the run's events tell them."""

    model_config = with_example(starts=[START_EXAMPLE])

    starts: list[StartResponse]


class DeletedRunResponse(ResponseSchema):
    """A deleted run: how many of its files were deleted, how many stay in the store, and why."""

    model_config = with_example(
        run="chat-20260701-120000-3f2a", files=14, retained_files=3, reason="its adapter needs them"
    )

    run: str
    files: int
    retained_files: int
    reason: str = ""


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
