"""What the routes are given besides a submission: bodies, and names in paths."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import ConfigDict, Field

from jobs.spec.kinds import Kind
from jobs.spec.schema import NAME_PATTERN
from jobs.spec.strict_model import StrictModel
from jobs.store.adapters.manifest import MAX_NAME_LENGTH, Name
from jobs.store.runs.run_store import MAX_RUN_ID_LENGTH
from orchestrator.registry.values import DEFAULT_CLUSTER, Limit

MAX_STORE_CHARS = 1024
STORE_PATTERN = r"^[ -~]+$"
YEAR_S = 366 * 86400.0

RunPath = Annotated[str, Path(pattern=NAME_PATTERN, max_length=MAX_RUN_ID_LENGTH)]
NamePath = Annotated[str, Path(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)]
VersionPath = Annotated[int, Path(ge=1, lt=10**9)]
TokenPath = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]
NameQuery = Annotated[str | None, Query(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)]
StoreQuery = Annotated[
    str | None,
    Query(
        pattern=STORE_PATTERN,
        max_length=MAX_STORE_CHARS,
        description="As adapters name it; needed where a name lies in several.",
    ),
]


class SubmitRunRequest(StrictModel):
    """A run that is asked for. Without a project: the token's, or `default`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "finetune",
                    "spec": {
                        "name": "chat",
                        "model": {"path": "/models/smollm2"},
                        "data": {"train": "/data/chat.jsonl", "eval_fraction": 0.05},
                        "train": {"steps": 60, "batch_size": 8},
                    },
                    "priority": 5,
                }
            ]
        }
    )

    kind: Kind = "finetune"
    spec: dict[str, Any]
    """As in a spec's YAML, with whole paths."""
    project: Name | None = None
    cluster: Name = DEFAULT_CLUSTER
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0


class PromoteAdapterRequest(StrictModel):
    """Which version a bare name shall mean."""

    version: int = Field(ge=1, lt=10**9, examples=[2])


class CreateScheduleRequest(StrictModel):
    """A schedule that is asked for."""

    name: Name
    project: Name | None = None
    cron: str = Field(min_length=1, max_length=200, pattern=r"^[ -~]+$", examples=["0 3 * * *"])
    time_zone: str = Field(default="UTC", max_length=63, pattern=r"^[A-Za-z0-9_+/-]+$")
    concurrency: Literal["skip", "queue", "replace"] = "skip"
    missed: Literal["skip", "latest", "all"] = "latest"
    jitter_s: float = Field(default=0.0, ge=0, le=86400)
    spec: dict[str, Any]
    """What each firing submits."""
    kind: Kind = "retrain"
    only_new_data: bool = False
    """Fire only where data.train has changed since the last firing."""
    cluster: Name = DEFAULT_CLUSTER
    priority: int = Field(default=0, ge=-1000, le=1000)


class UpdateScheduleRequest(StrictModel):
    """What of a schedule changes; the rest stays."""

    revision: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    """As it was read: where somebody else changed it since, the answer is 409."""
    paused: bool | None = None
    cron: str | None = Field(default=None, min_length=1, max_length=200, pattern=r"^[ -~]+$")
    time_zone: str | None = Field(default=None, max_length=63, pattern=r"^[A-Za-z0-9_+/-]+$")
    concurrency: Literal["skip", "queue", "replace"] | None = None
    missed: Literal["skip", "latest", "all"] | None = None
    jitter_s: float | None = Field(default=None, ge=0, le=86400)
    spec: dict[str, Any] | None = None
    only_new_data: bool | None = None
    cluster: Name | None = None
    priority: int | None = Field(default=None, ge=-1000, le=1000)


class CreateProjectRequest(StrictModel):
    """A project that is asked for; a limit of null is none."""

    name: Name
    max_runs: Limit | None = None
    max_workers: Limit | None = None
    max_tokens_a_day: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class UpdateProjectRequest(StrictModel):
    """Which limits change; one that is not named stays, null takes it away."""

    revision: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    """As it was read: where somebody else changed it since, the answer is 409."""
    max_runs: Limit | None = None
    max_workers: Limit | None = None
    max_tokens_a_day: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class CreateTokenRequest(StrictModel):
    """A token that is asked for. Without a project: the asker's own, or all."""

    label: Name
    scope: Literal["viewer", "submitter", "admin"]
    project: Name | None = None
    seconds: Annotated[float, Field(gt=0, le=10 * YEAR_S)] | None = None
    """Until it expires; never without."""
