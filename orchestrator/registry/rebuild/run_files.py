"""Read the files of a run in the store as the row and events that a registry would hold.

The files are untrusted. What they leave open stays open: a run without an end counts as running,
because a run that writes nothing may still be alive.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from jobs.errors import (
    Fault,
    InputError,
    NotInStore,
    StoreError,
    StoreRefused,
    StoreUnreachable,
)
from jobs.spec.kinds import KINDS, count_workers, find_kind_of_files
from jobs.spec.limits import MAX_INT32
from jobs.spec.load import validate_spec
from jobs.spec.schema import RunSpec, SearchSpec
from jobs.spec.yaml_text import MAX_BYTES, YAML_ERRORS, parse_yaml_fast
from jobs.store.base import ObjectStore
from jobs.store.keys import check_key
from jobs.store.runs.journal import encode_event, parse_events
from jobs.store.runs.run_store import EVENTS, RUNS_PREFIX, format_run_key
from orchestrator.registry.adapters import SearchSummary
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.rebuild.search_files import make_search_summary, read_trials
from orchestrator.registry.rebuild.untrusted import (
    FIX_HINT,
    is_run_id,
    read_count,
    read_time,
)
from orchestrator.registry.run_request import REQUEST_FILE, RunRequest, read_request
from orchestrator.registry.values import clean_text

MAX_JOURNAL_BYTES = 256 << 20
MAX_VALUE_CHARS = 1000

ACTIVE_EVENTS = frozenset({"loading", "started", "resumed", "restarted", "stalled", "trial"})
"""After the end of an attempt these show that the run continues."""
RECORDED_EVENTS = ACTIVE_EVENTS - {"trial"} | {
    "stage", "checkpoint_saved", "handoff", "preempting", "budget_exhausted", "published", "failed",
    "stopped",
}  # fmt: skip
"""The events of a run's progress; others (samples, steps, ...) stay in the store."""

_TIMESTAMP = re.compile(r"-(\d{8}-\d{6})-[0-9a-f]{4,12}$")


@dataclass(frozen=True)
class StoreEvent:
    """The part of a journal's event that the registry holds."""

    at: float
    kind: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """A run, as its files in the store describe it."""

    id: str
    name: str
    kind: str
    spec_sha256: str | None
    workers: int
    created_at: float
    updated_at: float
    status: Status
    reason: Reason | None
    detail: str
    attempt: int
    events: tuple[StoreEvent, ...]
    search: SearchSummary | None = None
    trials: frozenset[str] = frozenset()
    """Run ids of a search's trials."""
    request: RunRequest | None = None
    """None for a run that was started without a service."""
    faults: tuple[Fault, ...] = field(default=())


def list_runs(store: ObjectStore) -> Iterator[tuple[str, frozenset[str]]]:
    """List the runs that have a request or a spec, with the names of their files."""
    names_by_run: dict[str, set[str]] = {}
    for key in store.list(RUNS_PREFIX):
        parts = key.split("/")
        if len(parts) == 3:
            names_by_run.setdefault(parts[1], set()).add(parts[2])
    for run, file_names in sorted(names_by_run.items()):
        if file_names & {REQUEST_FILE, *(kind.spec_file for kind in KINDS.values())}:
            yield run, frozenset(file_names)


def read_run_files(
    store: ObjectStore, run: str, file_names: frozenset[str]
) -> RunFiles | Fault | None:
    """Read the files of a run; return a Fault if that fails, None if they were deleted."""
    if not is_run_id(run):
        return Fault(f"{RUNS_PREFIX}{run[:150]!a}", "not a valid run id", FIX_HINT)
    try:
        return _RunReader(store, run, file_names).read()
    except NotInStore:
        return None
    except (StoreRefused, StoreUnreachable):
        raise
    except StoreError as error:
        return Fault(RUNS_PREFIX + run, str(error)[:300], FIX_HINT)


class _RunReader:
    """Reads one run and collects the faults of its files."""

    def __init__(self, store: ObjectStore, run: str, file_names: frozenset[str]) -> None:
        self._store, self._run, self._file_names = store, run, file_names
        self._kind = find_kind_of_files(file_names)
        self._faults = list[Fault]()

    def read(self) -> RunFiles:
        spec, digest = self._read_spec()
        events = self._read_events()
        request = self._read_request()
        recorded = tuple(event for event in map(_make_store_event, events) if event is not None)
        created_at = _parse_timestamp(self._run) or (recorded[0].at if recorded else 0.0)
        is_search = self._kind is KINDS["search"]
        trials = read_trials(events, self._key(EVENTS), self._faults) if is_search else []
        search = (
            make_search_summary(self._run, spec.section, trials, events)
            if isinstance(spec, SearchSpec)
            else None
        )
        status, reason, detail = _derive_status(events)
        return RunFiles(
            id=self._run,
            name=request.name if request else spec.name if spec else self._run[:63],
            kind=request.kind if request else self._kind.name,
            spec_sha256=request.spec_sha256 if request else digest,
            workers=request.workers if request else _count_workers(spec),
            created_at=created_at,
            updated_at=max([created_at, *(event.at for event in recorded)]),
            status=status,
            reason=reason,
            detail=detail,
            attempt=max((read_count(event.get("attempt")) for event in events), default=0),
            request=request,
            events=recorded,
            search=search,
            trials=frozenset(trial.run for trial in trials if trial.run),
            faults=tuple(self._faults),
        )

    def _read_request(self) -> RunRequest | None:
        if REQUEST_FILE not in self._file_names:
            return None
        try:
            return read_request(self._store, self._run)
        except InputError as error:
            self._faults += error.faults
            return None

    def _read_spec(self) -> tuple[RunSpec | None, str | None]:
        if self._kind.spec_file not in self._file_names:
            return None, None
        data = self._store.read(self._key(self._kind.spec_file), 0, MAX_BYTES + 1)
        digest = sha256(data).hexdigest()
        try:
            return validate_spec(_parse_mapping(data)), digest
        except InputError as error:
            first = error.faults[0]
            problem = f"{first.key}: {first.problem}"
        except (*YAML_ERRORS, RecursionError) as error:
            problem = f"not a spec: {str(error)[:200]!a}"
        self._add_fault(self._kind.spec_file, problem[:300])
        return None, digest

    def _read_events(self) -> list[dict[str, Any]]:
        if EVENTS not in self._file_names:
            return []
        check_key(self._key(EVENTS))
        text = self._store.read(self._key(EVENTS), 0, MAX_JOURNAL_BYTES + 1)
        if len(text) > MAX_JOURNAL_BYTES:
            self._add_fault(EVENTS, f"only its first {MAX_JOURNAL_BYTES} bytes were read")
        events, _ = parse_events(text, 0)
        if (invalid := text.count(b"\n") - len(events)) > 0:
            problem = f"{invalid} of its lines are not events"
            self._faults.append(Fault(self._key(EVENTS), problem, "The other lines were read."))
        return events

    def _key(self, file_name: str) -> str:
        return format_run_key(self._run, file_name)

    def _add_fault(self, file_name: str, problem: str) -> None:
        self._faults.append(Fault(self._key(file_name), problem, FIX_HINT))


def _parse_mapping(data: bytes) -> Mapping[str, Any]:
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes")
    values = parse_yaml_fast(data.decode())
    if not isinstance(values, dict):
        raise ValueError("not a mapping")
    return values


def _make_store_event(event: Mapping[str, Any]) -> StoreEvent | None:
    kind = event.get("event")
    if not isinstance(kind, str) or kind not in RECORDED_EVENTS:
        return None
    body = {
        clean_text(name)[:100]: clean_text(value)[:MAX_VALUE_CHARS]
        if isinstance(value, str)
        else value
        for name, value in event.items()
        if name not in ("event", "time") and isinstance(value, str | int | float | bool)
    }
    # Encoded again as the journal does: JSON readers accept NaN, databases do not.
    return StoreEvent(read_time(event), kind, json.loads(encode_event(body)))


def _derive_status(events: list[dict[str, Any]]) -> tuple[Status, Reason | None, str]:
    status, reason, detail = Status.PLANNED, None, ""
    for event in events:
        kind, message = str(event.get("event")), clean_text(str(event.get("why", "")))
        if kind == "published":
            return Status.DONE, None, ""
        if kind == "failed":
            status, reason, detail = Status.FAILED, Reason.CRASHED, message
        elif kind == "stopped":
            status, reason, detail = Status.STOPPED, Reason.USER, message
        elif kind in ACTIVE_EVENTS or status is Status.PLANNED:
            status, reason, detail = Status.RUNNING, None, ""
    return status, reason, detail


def _count_workers(spec: RunSpec | None) -> int:
    return 1 if spec is None else min(count_workers(spec), MAX_INT32)


def _parse_timestamp(run: str) -> float | None:
    """Return the time in a run id, which is when the id was made."""
    match = _TIMESTAMP.search(run)
    if match is None:
        return None
    try:
        return datetime.strptime(match[1], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
