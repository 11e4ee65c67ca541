"""A run's papers in the store, read as a registry would have written them. Hostile until read.

What the papers can't say stays open: a run that tells of no end is taken for running, because a
silent run is not a dead one.
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
from jobs.spec.kinds import KINDS, find_kind_of_files
from jobs.spec.load import validate_spec
from jobs.spec.schema import RunSpec
from jobs.spec.yaml_text import MAX_BYTES, YAML_ERRORS
from jobs.store.base import ObjectStore
from jobs.store.keys import check_key
from jobs.store.runs.journal import encode_event, parse_events
from jobs.store.runs.run_store import EVENTS, RUNS_PREFIX, SPEC, format_run_key
from orchestrator.registry.adapters import SearchSummary
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.rebuild.search_files import (
    SEARCH_FILE,
    make_search_summary,
    read_search_goal,
    read_trials,
)
from orchestrator.registry.rebuild.untrusted import (
    FIX_HINT,
    MAX_INT32,
    is_run_id,
    parse_mapping,
    read_count,
    read_time,
)
from orchestrator.registry.run_request import REQUEST_FILE, RunRequest, read_request
from orchestrator.registry.values import clean_text

MAX_JOURNAL_BYTES = 256 << 20
MAX_VALUE_CHARS = 1000

ACTIVE_EVENTS = frozenset({"loading", "started", "resumed", "restarted", "stalled", "trial"})
"""After an end they say that the run goes on."""
RECORDED_EVENTS = ACTIVE_EVENTS - {"trial"} | {"stage", "checkpoint_saved", "handoff", "preempting", "over"}
RECORDED_EVENTS |= {"published", "failed", "stopped"}
"""The events that tell how a run went; the others (samples, progress, …) stay in the store."""

_TIMESTAMP = re.compile(r"-(\d{8}-\d{6})-[0-9a-f]{4,12}$")


@dataclass(frozen=True)
class StoreEvent:
    """One line of a run's journal, as much of it as the registry keeps."""

    at: float
    kind: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """What the store knows of a run."""

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
    """The runs that a search's trials had."""
    request: RunRequest | None = None
    """What a service was asked; None for a run that was started without one."""
    faults: tuple[Fault, ...] = field(default=())


def list_runs(store: ObjectStore) -> Iterator[tuple[str, frozenset[str]]]:
    """Every run that wrote down what was asked, with the names of its papers."""
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
    """What they say; a Fault where they can't be read at all; None where they are gone by now."""
    if not is_run_id(run):
        return Fault(f"{RUNS_PREFIX}{run[:150]!a}", "no run's name", FIX_HINT)
    try:
        return _read_files(store, run, file_names)
    except NotInStore:
        return None
    except (StoreRefused, StoreUnreachable):
        raise
    except StoreError as error:
        return Fault(RUNS_PREFIX + run, str(error)[:300], FIX_HINT)


def _read_files(store: ObjectStore, run: str, file_names: frozenset[str]) -> RunFiles:
    prefix, faults = format_run_key(run), list[Fault]()
    spec, digest = _read_spec(store, prefix + SPEC, faults) if SPEC in file_names else (None, None)
    events = _read_events(store, prefix + EVENTS, faults) if EVENTS in file_names else []
    goal = (
        read_search_goal(store, prefix + SEARCH_FILE, faults) if SEARCH_FILE in file_names else None
    )
    recorded = tuple(event for event in map(_make_store_event, events) if event is not None)
    status, reason, detail = _derive_status(events)
    request = (
        _read_request(store, prefix + REQUEST_FILE, faults) if REQUEST_FILE in file_names else None
    )
    created_at = _parse_timestamp(run) or (recorded[0].at if recorded else 0.0)
    trials = read_trials(events, prefix + EVENTS, faults) if SEARCH_FILE in file_names else []
    return RunFiles(
        id=run,
        name=request.name if request else spec.name if spec else run[:63],
        kind=request.kind if request else find_kind_of_files(file_names).name,
        spec_sha256=sha256(request.spec_text.encode()).hexdigest() if request else digest,
        workers=request.workers if request else _count_workers(spec),
        created_at=created_at,
        updated_at=max([created_at, *(event.at for event in recorded)]),
        status=status,
        reason=reason,
        detail=detail,
        attempt=max(
            (read_count(event.get("attempt")) for event in events),
            default=0,
        ),
        request=request,
        events=recorded,
        search=make_search_summary(run, goal, trials, events) if goal else None,
        trials=frozenset(trial.run for trial in trials if trial.run),
        faults=tuple(faults),
    )


def _read_request(store: ObjectStore, key: str, faults: list[Fault]) -> RunRequest | None:
    request = read_request(store, key)
    if isinstance(request, Fault):
        faults.append(request)
        return None
    return request


def _read_spec(
    store: ObjectStore, key: str, faults: list[Fault]
) -> tuple[RunSpec | None, str | None]:
    text = store.read(key, 0, MAX_BYTES + 1)
    digest = sha256(text).hexdigest()
    try:
        return validate_spec(parse_mapping(text)), digest
    except InputError as error:
        first = error.faults[0]
        faults.append(Fault(key, f"{first.key}: {first.problem}"[:300], FIX_HINT))
    except (*YAML_ERRORS, RecursionError) as error:
        faults.append(Fault(key, f"no spec: {str(error)[:200]!a}", FIX_HINT))
    return None, digest


def _read_events(store: ObjectStore, key: str, faults: list[Fault]) -> list[dict[str, Any]]:
    check_key(key)
    text = store.read(key, 0, MAX_JOURNAL_BYTES + 1)
    if len(text) > MAX_JOURNAL_BYTES:
        faults.append(Fault(key, f"only its first {MAX_JOURNAL_BYTES} bytes were read", FIX_HINT))
    events, _ = parse_events(text, 0)
    torn = text.count(b"\n") - len(events)
    if torn > 0:
        faults.append(Fault(key, f"{torn} of its lines are no events", "The rest was read."))
    return events


def _make_store_event(event: Mapping[str, Any]) -> StoreEvent | None:
    kind = event.get("event")
    if not isinstance(kind, str) or kind not in RECORDED_EVENTS:
        return None
    facts = {
        clean_text(name)[:100]: clean_text(value)[:MAX_VALUE_CHARS]
        if isinstance(value, str)
        else value
        for name, value in event.items()
        if name not in ("event", "time") and isinstance(value, str | int | float | bool)
    }
    # Through the journal's own writing once more: a reader of JSON takes NaN, a database does not.
    return StoreEvent(read_time(event), kind, json.loads(encode_event(facts)))


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
    if spec is None:
        return 1
    workers = spec.cluster.workers
    return min(workers if isinstance(workers, int) else workers.max, MAX_INT32)


def _parse_timestamp(run: str) -> float | None:
    """When its id was made, which is in it."""
    match = _TIMESTAMP.search(run)
    if match is None:
        return None
    try:
        return datetime.strptime(match[1], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
