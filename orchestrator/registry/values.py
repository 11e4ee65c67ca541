"""The registry's frozen values: validated input, and rows as they were read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, TypeVar, cast

from pydantic import Field, TypeAdapter, ValidationError

from jobs.errors import Fault, InputError
from jobs.spec.strict_model import StrictModel
from jobs.store.adapters.manifest import Name, RunId
from jobs.train.monitor.event_text import escape_control
from orchestrator.registry.lifecycle import Reason, Status

MAX_DETAIL_CHARS = 4000
DEFAULT_PROJECT = "default"
DEFAULT_CLUSTER = "default"

Limit = Annotated[int, Field(ge=0, lt=2**31)]
Value = TypeVar("Value")

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_ID: TypeAdapter[str] = TypeAdapter(RunId)


class ProjectLimits(StrictModel):
    """Limits on what a project may use; None means unlimited."""

    max_runs: Limit | None = None
    """Runs at once."""
    max_workers: Limit | None = None
    """Workers at once, over all runs."""
    max_tokens_a_day: Annotated[int, Field(ge=0, lt=2**63)] | None = None


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
    """A project and its limits."""

    name: str
    max_runs: int | None
    max_workers: int | None
    max_tokens_a_day: int | None
    created_at: float
    revision: int


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
