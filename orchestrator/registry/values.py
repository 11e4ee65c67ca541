"""What the registry is given and what it answers: checked at the door, frozen values inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, TypeVar, cast

from pydantic import Field, TypeAdapter, ValidationError

from jobs.errors import Fault, InputError
from jobs.spec.kinds import Kind
from jobs.spec.strict_model import StrictModel
from jobs.store.adapters.manifest import Digest, Name, RunId
from jobs.train.monitor.event_text import escape_control
from orchestrator.registry.lifecycle import Reason, Status

MAX_DETAIL_CHARS = 4000
DEFAULT_PROJECT = "default"
DEFAULT_CLUSTER = "default"

Limit = Annotated[int, Field(ge=0, lt=2**31)]
Checked = TypeVar("Checked")
Value = TypeVar("Value")

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_ID: TypeAdapter[str] = TypeAdapter(RunId)


class NewRun(StrictModel):
    """A run that is asked for."""

    id: RunId
    name: Name
    store: str = Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f]*$")
    project: Name = DEFAULT_PROJECT
    kind: Kind = "finetune"
    spec_sha256: Digest | None = None
    workers: int = Field(default=1, ge=1, lt=2**31)
    priority: int = Field(default=0, ge=-1000, le=1000)
    search: RunId | None = None
    cluster: Name = DEFAULT_CLUSTER
    tokens: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class ProjectLimits(StrictModel):
    """What a project may use; None: as much as there is."""

    max_runs: Limit | None = None
    """At once."""
    max_workers: Limit | None = None
    max_tokens_a_day: Annotated[int, Field(ge=0, lt=2**63)] | None = None


@dataclass(frozen=True)
class Run:
    """A run as it was when it was read; `revision` is what an update has to name."""

    id: str
    project: str
    kind: str
    name: str
    store: str
    spec_sha256: str | None
    workers: int
    priority: int
    status: Status
    reason: Reason | None
    detail: str
    attempt: int
    search: str | None
    cluster: str
    tokens: int | None
    stop: str | None
    not_before: float | None
    wait_reason: str
    origin: str
    created_at: float
    updated_at: float
    revision: int

    @property
    def submission(self) -> str:
        """The id of its newest job on a cluster."""
        return format_submission_id(self.id, self.attempt)


@dataclass(frozen=True)
class Attempt:
    """One try of a run on a cluster."""

    run: str
    number: int
    submission: str
    cluster: str
    status: Status
    reason: Reason | None
    created_at: float
    ended_at: float | None
    acknowledged_at: float | None


@dataclass(frozen=True)
class Event:
    """One thing that happened to a run; `position` is where a reader goes on behind."""

    run: str
    origin: str
    position: int
    at: float
    kind: str
    attempt: int
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Project:
    """A project and what it may use."""

    name: str
    max_runs: int | None
    max_workers: int | None
    max_tokens_a_day: int | None
    created_at: float
    revision: int


def format_submission_id(run: str, attempt: int) -> str:
    """The same for the same attempt of a run: to submit it twice is to submit it once."""
    return f"{run}-a{attempt}"


def make_value(value_type: type[Value], row: Any, **changes: Any) -> Value:
    """A row as a frozen value."""
    return value_type(
        **{
            name: changes[name] if name in changes else getattr(row, name)
            for name in _list_field_names(cast(Any, value_type))
        }
    )


@cache
def _list_field_names(value_type: Any) -> tuple[str, ...]:
    """Kept, because a page of runs would ask for them at every row."""
    return tuple(field.name for field in fields(value_type))


def make_run(row: Any) -> Run:
    """A run's row as a value."""
    reason = None if row.reason is None else Reason(row.reason)
    return make_value(Run, row, status=Status(row.status), reason=reason)


def clean_text(text: str) -> str:
    """Words of others, such that any database takes them and no terminal obeys them."""
    return escape_control(text)[:MAX_DETAIL_CHARS]


def check_name(text: str, key: str) -> str:
    """The name itself. Raises InputError."""
    return _validate_text(_NAME, text, key)


def check_id(text: str, key: str) -> str:
    """The id itself. Raises InputError."""
    return _validate_text(_ID, text, key)


def _validate_text(adapter: TypeAdapter[str], text: str, key: str) -> str:
    try:
        return adapter.validate_python(text, strict=True)
    except ValidationError as error:
        problem = f"{str(text)[:100]!a} is no name"
        remedy = "Use letters, digits, dots, dashes and underscores."
        raise InputError([Fault(key, problem, remedy)]) from error
