"""What the service answers, as frozen values. Keys that this client does not know are left out.

Dataclasses with a reader of their own, small enough to be read through at each start of a command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from orchestrator.client.errors import UnexpectedResponse

Value = TypeVar("Value")

FINAL_STATUSES = frozenset({"done", "failed", "stopped"})
"""A run of these is over for good."""


@dataclass(frozen=True)
class AttemptResponse:
    """One try of a run on a cluster."""

    number: int
    submission: str
    cluster: str
    status: str
    reason: str | None = None
    created_at: float = 0.0
    ended_at: float | None = None
    acknowledged_at: float | None = None


@dataclass(frozen=True)
class RunResponse:
    """A run as it was when it was read."""

    id: str
    project: str
    kind: str
    name: str
    store: str
    status: str
    cluster: str
    attempt: int
    workers: int
    priority: int
    created_at: float
    updated_at: float
    reason: str | None = None
    detail: str = ""
    wait_reason: str = ""
    stop: str | None = None
    tokens: int | None = None
    search: str | None = None
    not_before: float | None = None
    attempts: tuple[AttemptResponse, ...] = ()
    """Of one run that was asked for by its id; a list has none."""

    @property
    def is_final(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in FINAL_STATUSES


@dataclass(frozen=True)
class CheckResponse:
    """What a check says of a spec that could be submitted."""

    kind: str
    name: str
    store: str
    workers: int
    data: str
    tokens: int | None = None


@dataclass(frozen=True)
class EventResponse:
    """One thing that happened to a run; `position` is where a reader goes on behind."""

    run: str
    position: int
    at: float
    kind: str
    attempt: int
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AdapterResponse:
    """One committed version of an adapter."""

    store: str
    name: str
    version: int
    label: str
    project: str
    run: str
    attempt: int
    kind: str
    size: int
    committed_at: float
    parent: str | None = None
    search: str | None = None
    base_digest: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """Of a version that was asked for by its number; a list has none."""


@dataclass(frozen=True)
class PointerResponse:
    """What a bare name means, and how many moves led there."""

    store: str
    name: str
    version: int
    move: int


@dataclass(frozen=True)
class AdapterNameResponse:
    """An adapter's name in one store: what it means, and its versions, the oldest first."""

    store: str
    name: str
    versions: tuple[AdapterResponse, ...]
    current: PointerResponse | None = None


@dataclass(frozen=True)
class ScheduleResponse:
    """When runs are made, and of what."""

    project: str
    name: str
    cron: str
    time_zone: str
    kind: str
    paused: bool
    concurrency: str
    missed: str
    cluster: str
    priority: int
    only_new_data: bool
    revision: int
    jitter_s: float = 0.0
    next_at: float | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FiringResponse:
    """What came of one moment of a schedule."""

    due_at: float
    fired_at: float
    outcome: str
    run: str | None = None


@dataclass(frozen=True)
class ProjectResponse:
    """What runs and tokens belong to, and how much of it there may be; None: no limit."""

    name: str
    revision: int
    max_runs: int | None = None
    max_workers: int | None = None
    max_tokens_a_day: int | None = None


@dataclass(frozen=True)
class ClusterResponse:
    """A Ray cluster that the service submits to."""

    name: str
    up: bool
    capacity: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class TokenResponse:
    """Who may do what. The words themselves are in none that was not made just now."""

    id: str
    label: str
    scope: str
    created_at: float
    project: str | None = None
    expires_at: float | None = None
    revoked_at: float | None = None
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class MeResponse:
    """Whose token this is."""

    label: str
    scope: str
    project: str | None = None
    id: str | None = None
    expires_at: float | None = None


_PLAIN_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "Mapping[str, Any]": (dict,),
}
_LIST_TYPES: dict[str, type] = {
    "tuple[Attempt, ...]": AttemptResponse,
    "tuple[Adapter, ...]": AdapterResponse,
}
_OBJECT_TYPES: dict[str, type] = {"Pointer": PointerResponse}


def make_parser(kind: type[Value], url: str) -> Callable[[Any], Value]:
    """Reads such answers of this address. Raises NotUnderstood where one is something else."""

    def parse(body: Any) -> Value:
        if not isinstance(body, dict):
            raise UnexpectedResponse(
                url, f"{type(body).__name__} came where a {kind.__name__} was due"
            )
        values = {}
        for attribute in fields(kind):  # type: ignore[arg-type]
            if attribute.name in body:
                values[attribute.name] = _parse_value(
                    kind, str(attribute.type), attribute.name, body[attribute.name], url
                )
            elif attribute.default is MISSING and attribute.default_factory is MISSING:
                raise UnexpectedResponse(url, f"a {kind.__name__} came without {attribute.name}")
        return kind(**values)

    return parse


def _parse_value(kind: type, annotation: str, name: str, value: Any, url: str) -> Any:
    if annotation in _LIST_TYPES:
        if not isinstance(value, list):
            raise UnexpectedResponse(url, f"{name} of a {kind.__name__} is no list")
        return tuple(map(make_parser(_LIST_TYPES[annotation], url), value))
    if value is None and annotation.endswith(" | None"):
        return None
    if (inner := _OBJECT_TYPES.get(annotation.removesuffix(" | None"))) is not None:
        return make_parser(inner, url)(value)
    allowed = _PLAIN_TYPES[annotation.removesuffix(" | None")]
    # A bool is an int to Python alone.
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise UnexpectedResponse(url, f"{name} of a {kind.__name__} is a {type(value).__name__}")
    return value
