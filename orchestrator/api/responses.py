"""What the API answers, each with an example. Times are seconds since 1970."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

Item = TypeVar("Item")


def make_config(**example: Any) -> ConfigDict:
    """An answer made of a frozen value's attributes, with an example in the document."""
    return ConfigDict(frozen=True, from_attributes=True, json_schema_extra={"examples": [example]})


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
ADAPTER_EXAMPLE: dict[str, Any] = {
    "store": "s3://models/slora/",
    "name": "chat",
    "version": 2,
    "label": "chat@v2",
    "project": "default",
    "run": RUN_EXAMPLE["id"],
    "attempt": 1,
    "kind": "slora",
    "parent": "chat@v1",
    "search": None,
    "base_digest": "0a" * 32,
    "size": 1863224,
    "committed_at": 1767236400.0,
}
POINTER_EXAMPLE: dict[str, Any] = {
    "store": ADAPTER_EXAMPLE["store"],
    "name": "chat",
    "version": 2,
    "move": 3,
}
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
    "created_at": 1767236400.0,
    "revision": 1,
}
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


class Page(BaseModel, Generic[Item]):
    """Some of a list; `next` is the cursor of what follows, null at its end."""

    items: list[Item]
    next: str | None


class RunResponse(BaseModel):
    """A run. `wait_reason` tells why a planned run is not submitted; `stop` requests its end."""

    model_config = make_config(**RUN_EXAMPLE)

    id: str
    project: str
    kind: str
    name: str
    store: str
    cluster: str
    status: str
    reason: str | None
    detail: str
    attempt: int
    workers: int
    priority: int
    tokens: int | None
    search: str | None
    stop: str | None
    wait_reason: str
    not_before: float | None
    spec_sha256: str | None
    created_at: float
    updated_at: float
    revision: int


class AttemptResponse(BaseModel):
    """One try of a run on a cluster."""

    model_config = make_config(**ATTEMPT_EXAMPLE)

    number: int
    submission: str
    cluster: str
    status: str
    reason: str | None
    created_at: float
    ended_at: float | None
    acknowledged_at: float | None


class RunDetailResponse(RunResponse):
    """A run with its attempts, the first one first."""

    model_config: ClassVar[ConfigDict] = make_config(**RUN_EXAMPLE, attempts=[ATTEMPT_EXAMPLE])

    attempts: list[AttemptResponse]


class CheckResponse(BaseModel):
    """What a submission would be; `tokens` is null where only the data's rows tell."""

    model_config = make_config(
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
    tokens: int | None
    data: str


class AdapterResponse(BaseModel):
    """A committed version."""

    model_config = make_config(**ADAPTER_EXAMPLE)

    store: str
    name: str
    version: int
    label: str
    project: str
    run: str
    attempt: int
    kind: str
    parent: str | None
    search: str | None
    base_digest: str
    size: int
    committed_at: float


class AdapterDetailResponse(AdapterResponse):
    """A committed version with its manifest, as the store has it."""

    model_config: ClassVar[ConfigDict] = make_config(
        **ADAPTER_EXAMPLE, manifest={"format": 1, "name": "chat"}
    )

    manifest: dict[str, Any]


class PointerResponse(BaseModel):
    """What a bare name means, and how many moves led there."""

    model_config = make_config(**POINTER_EXAMPLE)

    store: str
    name: str
    version: int
    move: int


class AdapterNameResponse(BaseModel):
    """An adapter's name in one store: what it means, and its versions, the oldest first."""

    model_config = make_config(
        store=ADAPTER_EXAMPLE["store"],
        name="chat",
        current=POINTER_EXAMPLE,
        versions=[ADAPTER_EXAMPLE],
    )

    store: str
    name: str
    current: PointerResponse | None
    versions: list[AdapterResponse]


class ScheduleResponse(BaseModel):
    """A schedule. Name its `revision` in a change, and nobody else's change is overwritten."""

    model_config = make_config(**SCHEDULE_EXAMPLE)

    project: str
    name: str
    kind: str
    cron: str
    time_zone: str
    concurrency: str
    missed: str
    jitter_s: float
    paused: bool
    only_new_data: bool
    cluster: str
    priority: int
    spec: dict[str, Any]
    next_at: float | None
    created_at: float
    revision: int


class FiringResponse(BaseModel):
    """What came of one moment: run, queued, skipped, no_new_data, refused."""

    model_config = make_config(
        due_at=1767322800.0, fired_at=1767322800.4, outcome="run", run="chat-20260102-030000-1f2e"
    )

    due_at: float
    fired_at: float
    outcome: str
    run: str | None


class ProjectResponse(BaseModel):
    """A project and what it may use; null: as much as there is."""

    model_config = make_config(**PROJECT_EXAMPLE)

    name: str
    max_runs: int | None
    max_workers: int | None
    max_tokens_a_day: int | None
    created_at: float
    revision: int


class CapacityResponse(BaseModel):
    """What a whole cluster has, and what of it is free."""

    model_config = make_config(
        cpus=8.0, gpus=1.0, free_cpus=6.0, free_gpus=0.0, nodes=2, node_memory=17179869184
    )

    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float
    nodes: int
    node_memory: int | None


class ClusterResponse(BaseModel):
    """A cluster; without a capacity it does not answer."""

    model_config = make_config(name="default", up=True, capacity=None)

    name: str
    up: bool
    capacity: CapacityResponse | None


class TokenResponse(BaseModel):
    """A token, without its secret; `project` null: for all projects."""

    model_config = make_config(**TOKEN_EXAMPLE)

    id: str
    label: str
    scope: str
    project: str | None
    created_at: float
    expires_at: float | None
    revoked_at: float | None


class NewTokenResponse(TokenResponse):
    """A new token with its secret, which is shown this once."""

    model_config: ClassVar[ConfigDict] = make_config(**TOKEN_EXAMPLE, secret="slora_…")

    secret: str


class HealthResponse(BaseModel):
    """That it is well."""

    model_config = make_config(status="ok")

    status: str
