"""The record of a deployment: what it follows, what answers, how far a rollout is, its history.

It lies in the store as `deployments/<name>.json` and is replaced by compare-and-swap, so that any
process can continue a rollout. Others may write to the store: it is untrusted until it is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, ValidationError

from jobs.errors import NotInStore, StoreError
from jobs.spec.limits import NAME_PATTERN, VersionNumber
from jobs.spec.strict_model import StrictModel
from jobs.store.adapters.manifest import MAX_NAME_LENGTH, Name, Time, format_time
from jobs.store.base import ObjectStore
from jobs.store.keys import DEPLOYMENTS_PREFIX, MAX_DEPLOYMENT_BYTES
from jobs.store.strict_json import load_strictly
from jobs.store.trust.statements import OPERATOR_PROJECT, find_project

MAX_HISTORY = 200
MAX_PROMPTS, MAX_PROMPT_CHARS = 20, 4000
MAX_REASON_CHARS = 1000

Text = Annotated[str, Field(max_length=MAX_REASON_CHARS)]
Move = Annotated[int, Field(ge=1, lt=2**53)]
Step = Literal["check", "load", "measure", "judge", "switch"]
PromptText = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]


class CanarySettings(StrictModel):
    """How a version is judged before it answers under the public name."""

    prompts: Annotated[tuple[PromptText, ...], Field(max_length=MAX_PROMPTS, strict=False)] = ()
    """Prompts beside the sample prompts of the adapter's run; each needs an answer."""
    max_latency_s: float = Field(default=30.0, gt=0, le=600, strict=False)
    """Seconds that an answer of 40 tokens may take."""
    loss_tolerance: float = Field(default=0.05, gt=0, le=10, strict=False)
    """How far the loss on held-out rows through the server may lie from the run's, and above that
    of the version that answers now."""


class Rollout(StrictModel):
    """A version on its way to the public name."""

    version: VersionNumber
    move: Move | None = None
    """The pointer's move that asked for it; None for a pinned version."""
    form: Annotated[str, Field(max_length=20)]
    step: Step
    """The step that is carried out next."""
    judged_live: bool = False
    """Whether it can only be asked once it answers under the public name."""
    live_loss: FiniteFloat | None = None
    """Loss of the version that answers now on the held-out rows of the new one."""
    figures: dict[Annotated[str, Field(max_length=40)], FiniteFloat] = Field(default_factory=dict)
    """What the canary measured."""


class Declined(StrictModel):
    """A version that is not tried again until the pointer moves or somebody deploys again."""

    version: VersionNumber
    move: Move | None = None
    reason: Text


class HistoryEntry(StrictModel):
    """Something that happened to a deployment."""

    when: Time
    event: Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")]
    version: VersionNumber | None = None
    detail: Text = ""
    by: Annotated[str, Field(max_length=100)] = ""
    """Label of a token or a user; empty if the rollout itself did it."""


class DeploymentRecord(StrictModel):
    """The state of a deployment."""

    format: Literal[1] = 1
    name: Name
    adapter: Name
    pin: VersionNumber | None = None
    """The version that it stays at; None follows the adapter's pointer."""
    endpoint: Annotated[str, Field(min_length=1, max_length=512)]
    canary: CanarySettings = CanarySettings()
    live: VersionNumber | None = None
    """The version that the public name answers with."""
    previous: VersionNumber | None = None
    """The version before, which stays loaded for a rollback."""
    model: Annotated[str, Field(max_length=512)] | None = None
    """What a request names as its `model`."""
    rollout: Rollout | None = None
    declined: Declined | None = None
    removing: bool = False
    problem: Text | None = None
    """Why nothing can be done at present, such as a server that does not answer."""
    history: Annotated[tuple[HistoryEntry, ...], Field(max_length=MAX_HISTORY)] = ()

    @property
    def status(self) -> str:
        """Return removing, rolling_out, live, declined or pending."""
        if self.removing:
            return "removing"
        if self.rollout is not None:
            return "rolling_out"
        if self.declined is not None:
            return "declined"
        return "pending" if self.live is None else "live"

    def add_event(
        self, event: str, version: int | None = None, detail: str = "", *, by: str = ""
    ) -> DeploymentRecord:
        """Return the record with one more entry in its history; the oldest are dropped."""
        entry = HistoryEntry(
            when=format_time(datetime.now(UTC)),
            event=event,
            version=version,
            detail=detail[:MAX_REASON_CHARS],
            by=by[:100],
        )
        return self.change(history=(*self.history, entry)[-MAX_HISTORY:])

    def change(self, **changes: object) -> DeploymentRecord:
        """Return the record with other values of some fields."""
        return self.model_copy(update=changes)


class BadDeployment(StoreError):
    """The object under the key of a deployment is none."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key, problem)
        self.key, self.problem = key, problem

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}. Delete that object and deploy again."


def get_deployment_key(name: str) -> str:
    """Return the key of the record of a deployment."""
    return f"{DEPLOYMENTS_PREFIX}{name}.json"


def get_public_name(store: ObjectStore, name: str) -> str:
    """Return the name that a server answers to: PROJECT..NAME, or NAME of the default project.

    No name contains two dots in a row, so that projects never share a name.
    """
    project = find_project(store.url(""))
    return name if project == OPERATOR_PROJECT else f"{project}..{name}"


def name_version(public: str, version: int) -> str:
    """Return the name of a version at a server."""
    return f"{public}@v{version}"


def list_deployments(store: ObjectStore) -> Iterator[str]:
    """Iterate over the names of the deployments of a store, sorted."""
    for key in store.list(DEPLOYMENTS_PREFIX):
        name = key.removeprefix(DEPLOYMENTS_PREFIX).removesuffix(".json")
        is_name = len(name) <= MAX_NAME_LENGTH and re.fullmatch(NAME_PATTERN, name)
        if key == get_deployment_key(name) and is_name:
            yield name


def read_deployment(store: ObjectStore, name: str) -> tuple[DeploymentRecord, str]:
    """Return a record and its etag. Raise NotInStore, or BadDeployment if it is something else."""
    key = get_deployment_key(name)
    info = store.head(key)
    if info is None:
        raise NotInStore(f"The deployment {name}", list(list_deployments(store)))
    if info.size > MAX_DEPLOYMENT_BYTES:
        raise BadDeployment(key, f"{info.size} bytes exceed the limit of {MAX_DEPLOYMENT_BYTES}")
    # The etag is read first: a record that changes in between makes the next write fail.
    data = store.get(key)
    try:
        load_strictly(data)
        record = DeploymentRecord.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        location = ".".join(str(part) for part in first["loc"]) or "deployment"
        raise BadDeployment(key, f"{location[:100]!a}: {first['msg'][:200]!a}") from error
    except ValueError as error:
        raise BadDeployment(key, f"invalid JSON: {str(error)[:200]!a}") from error
    if record.name != name:
        raise BadDeployment(key, f"it is the record of {record.name!a}")
    return record, info.etag


def write_deployment(store: ObjectStore, record: DeploymentRecord, etag: str | None) -> str:
    """Write a record and return its etag; without `etag` it must be a new one.

    Raise WriteConflict if another process changed it, AlreadyExists if it is not new.
    """
    data = record.model_dump_json(indent=2, exclude_none=True).encode() + b"\n"
    return store.put(get_deployment_key(record.name), data, create_only=etag is None, if_match=etag)
