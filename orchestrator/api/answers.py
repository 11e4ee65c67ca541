"""What the API answers, each with an example. Times are seconds since 1970."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

Item = TypeVar("Item")


def shown(**example: Any) -> ConfigDict:
    """An answer made of a frozen value's attributes, with an example in the document."""
    return ConfigDict(frozen=True, from_attributes=True, json_schema_extra={"examples": [example]})


RUN: dict[str, Any] = {
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
    "waits": "",
    "not_before": None,
    "spec_sha256": "9f" * 32,
    "created_at": 1767236400.0,
    "updated_at": 1767236410.5,
    "revision": 3,
}
ATTEMPT: dict[str, Any] = {
    "number": 1,
    "submission": "chat-20260101-030000-1f2e-a1",
    "cluster": "default",
    "status": "running",
    "reason": None,
    "created_at": 1767236401.0,
    "ended_at": None,
    "seen_at": 1767236401.2,
}
ADAPTER: dict[str, Any] = {
    "store": "s3://models/slora/",
    "name": "chat",
    "version": 2,
    "label": "chat@v2",
    "project": "default",
    "run": RUN["id"],
    "attempt": 1,
    "kind": "slora",
    "parent": "chat@v1",
    "search": None,
    "base_digest": "0a" * 32,
    "size": 1863224,
    "committed_at": 1767236400.0,
}
POINTER: dict[str, Any] = {"store": ADAPTER["store"], "name": "chat", "version": 2, "move": 3}
SCHEDULE: dict[str, Any] = {
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
PROJECT: dict[str, Any] = {
    "name": "default",
    "max_runs": 10,
    "max_workers": None,
    "max_tokens_a_day": None,
    "created_at": 1767236400.0,
    "revision": 1,
}
TOKEN: dict[str, Any] = {
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


class RunAnswer(BaseModel):
    """A run. `waits` says why a planned one is not submitted yet, `stop` that it should end."""

    model_config = shown(**RUN)

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
    waits: str
    not_before: float | None
    spec_sha256: str | None
    created_at: float
    updated_at: float
    revision: int


class AttemptAnswer(BaseModel):
    """One try of a run on a cluster."""

    model_config = shown(**ATTEMPT)

    number: int
    submission: str
    cluster: str
    status: str
    reason: str | None
    created_at: float
    ended_at: float | None
    seen_at: float | None


class RunDetail(RunAnswer):
    """A run with its attempts, the first one first."""

    model_config: ClassVar[ConfigDict] = shown(**RUN, attempts=[ATTEMPT])

    attempts: list[AttemptAnswer]


class Checked(BaseModel):
    """What a submission would be; `tokens` is null where only the data's rows tell."""

    model_config = shown(
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


class AdapterAnswer(BaseModel):
    """A committed version."""

    model_config = shown(**ADAPTER)

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


class AdapterDetail(AdapterAnswer):
    """A committed version with its manifest, as the store has it."""

    model_config: ClassVar[ConfigDict] = shown(**ADAPTER, manifest={"format": 1, "name": "chat"})

    manifest: dict[str, Any]


class PointerAnswer(BaseModel):
    """What a bare name means, and how many moves led there."""

    model_config = shown(**POINTER)

    store: str
    name: str
    version: int
    move: int


class NameAnswer(BaseModel):
    """An adapter's name in one store: what it means, and its versions, the oldest first."""

    model_config = shown(store=ADAPTER["store"], name="chat", current=POINTER, versions=[ADAPTER])

    store: str
    name: str
    current: PointerAnswer | None
    versions: list[AdapterAnswer]


class ScheduleAnswer(BaseModel):
    """A schedule. Name its `revision` in a change, and nobody else's change is overwritten."""

    model_config = shown(**SCHEDULE)

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


class FiringAnswer(BaseModel):
    """What came of one moment: run, queued, skipped, nothing new, refused."""

    model_config = shown(
        due_at=1767322800.0, fired_at=1767322800.4, outcome="run", run="chat-20260102-030000-1f2e"
    )

    due_at: float
    fired_at: float
    outcome: str
    run: str | None


class ProjectAnswer(BaseModel):
    """A project and what it may use; null: as much as there is."""

    model_config = shown(**PROJECT)

    name: str
    max_runs: int | None
    max_workers: int | None
    max_tokens_a_day: int | None
    created_at: float
    revision: int


class CapacityAnswer(BaseModel):
    """What a whole cluster has, and what of it is free."""

    model_config = shown(
        cpus=8.0, gpus=1.0, free_cpus=6.0, free_gpus=0.0, nodes=2, node_memory=17179869184
    )

    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float
    nodes: int
    node_memory: int | None


class ClusterAnswer(BaseModel):
    """A cluster; without a capacity it does not answer."""

    model_config = shown(name="default", up=True, capacity=None)

    name: str
    up: bool
    capacity: CapacityAnswer | None


class TokenAnswer(BaseModel):
    """A token, without its secret; `project` null: for all projects."""

    model_config = shown(**TOKEN)

    id: str
    label: str
    scope: str
    project: str | None
    created_at: float
    expires_at: float | None
    revoked_at: float | None


class NewTokenAnswer(TokenAnswer):
    """A new token with its secret, which is shown this once."""

    model_config: ClassVar[ConfigDict] = shown(**TOKEN, secret="slora_…")

    secret: str


class Health(BaseModel):
    """That it is well."""

    model_config = shown(status="ok")

    status: str
