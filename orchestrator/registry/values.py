"""The registry's frozen values: validated input, and rows as they were read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from jobs.errors import Fault, InputError
from jobs.places.places import PlaceList
from jobs.spec.limits import LargeCount, Priority, SmallCount
from jobs.spec.strict_model import StrictModel
from jobs.store.adapters.manifest import Name, RunId
from jobs.train.monitor.event_text import escape_control
from orchestrator.registry.lifecycle import Reason, Status

MAX_DETAIL_CHARS = 4000
DEFAULT_PROJECT = "default"
DEFAULT_CLUSTER = "default"

Value = TypeVar("Value")

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_ID: TypeAdapter[str] = TypeAdapter(RunId)


class ProjectLimits(StrictModel):
    """Limits on what a project may use; None means unlimited."""

    max_runs: SmallCount | None = None
    """Runs at once."""
    max_workers: SmallCount | None = None
    """Workers at once, over all runs."""
    max_tokens_a_day: LargeCount | None = None
    max_queued: SmallCount | None = None
    """Runs that have not ended."""
    max_schedules: SmallCount | None = None
    max_cpus: LargeCount | None = None
    """CPUs at once, over all workers."""
    max_gpus: LargeCount | None = None
    max_stored_bytes: LargeCount | None = None
    """Bytes of all adapters: at the limit no run is accepted or started."""
    max_priority: Priority | None = None
    """Highest priority of a run or a schedule."""


class ProjectInputs(StrictModel):
    """What the runs of a project may read beside its own store; None means anything."""

    places: PlaceList | None = ()
    """Prefixes of data and models: absolute paths, s3:// URLs, and ids of the hub (org/*)."""
    models: PlaceList | None = ()
    """Models beside those in its places."""


@dataclass(frozen=True)
class Run:
    """A run as it was read; an update must name its `revision`."""

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
    by_token: str | None = None
    """Id of the token that submitted it, or that made its schedule."""
    by_label: str | None = None
    cpus: int = 0
    """CPUs of all its workers; 0 if an older version submitted it."""
    gpus: int = 0

    @property
    def submission(self) -> str:
        """Return the id of its newest job on a cluster."""
        return format_submission_id(self.id, self.attempt)


@dataclass(frozen=True)
class Attempt:
    """An attempt to execute a run on a cluster."""

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
    """An event of a run; a reader resumes after the last `position` that it read."""

    run: str
    origin: str
    position: int
    at: float
    kind: str
    attempt: int
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Project:
    """A project, its limits, and what its runs may read."""

    name: str
    max_runs: int | None
    max_workers: int | None
    max_tokens_a_day: int | None
    places: tuple[str, ...] | None
    models: tuple[str, ...] | None
    created_at: float
    revision: int
    max_queued: int | None = None
    max_schedules: int | None = None
    max_cpus: int | None = None
    max_gpus: int | None = None
    max_stored_bytes: int | None = None
    max_priority: int | None = None


def format_submission_id(run: str, attempt: int) -> str:
    """Format the id of an attempt's job; submitting the same id twice starts one job."""
    return f"{run}-a{attempt}"


def make_value(value_type: type[Value], row: Any, **changes: Any) -> Value:
    """Make a frozen value from a row, with some of its fields replaced."""
    names = _list_field_names(cast(Any, value_type))
    return value_type(
        **{name: changes[name] if name in changes else getattr(row, name) for name in names}
    )


@cache
def _list_field_names(value_type: Any) -> tuple[str, ...]:
    """List the fields of a dataclass; cached because a page of runs needs them for every row."""
    return tuple(field.name for field in fields(value_type))


def make_project(row: Any) -> Project:
    """Make a Project from its row."""
    return make_value(Project, row, places=_freeze(row.places), models=_freeze(row.models))


def _freeze(items: list[str] | None) -> tuple[str, ...] | None:
    return None if items is None else tuple(items)


def make_run(row: Any) -> Run:
    """Make a Run from its row."""
    reason = None if row.reason is None else Reason(row.reason)
    return make_value(Run, row, status=Status(row.status), reason=reason)


def clean_text(text: str) -> str:
    """Shorten a text and escape what a database does not store or a terminal would interpret."""
    return escape_control(text)[:MAX_DETAIL_CHARS]


def check_name(text: str, key: str) -> str:
    """Return the name. Raise InputError if it is not valid."""
    return _validate_text(_NAME, text, key)


def is_name(text: str) -> bool:
    """Return whether the text is a valid name."""
    try:
        _NAME.validate_python(text, strict=True)
    except ValidationError:
        return False
    return True


def check_id(text: str, key: str) -> str:
    """Return the id. Raise InputError if it is not valid."""
    return _validate_text(_ID, text, key)


def _validate_text(adapter: TypeAdapter[str], text: str, key: str) -> str:
    try:
        return adapter.validate_python(text, strict=True)
    except ValidationError as error:
        problem = f"{str(text)[:100]!a} is not a valid name"
        remedy = "Use letters, digits, dots, dashes and underscores."
        raise InputError([Fault(key, problem, remedy)]) from error
