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
    NotFound,
    StoreError,
    StoreRefused,
    StoreUnreachable,
)
from jobs.federate.papers import FEDERATION
from jobs.spec import Spec
from jobs.spec_file import MOST_BYTES, NOT_YAML, validate_spec
from jobs.store.journal import line_of_event, whole_events
from jobs.store.keys import check_key
from jobs.store.objects import ObjectStore
from jobs.store.runs import EVENTS, SPEC
from orchestrator.registry.adapters import SearchFound
from orchestrator.registry.hostile import LARGEST, MENDED, counted, is_run, mapping, moment
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.request_paper import REQUEST, RequestPaper, read_request
from orchestrator.registry.search_papers import SEARCH, asked_of, found_by, trials_of
from orchestrator.registry.values import Kind, told

LARGEST_JOURNAL = 256 << 20
LONGEST_WORDS = 1000

BEGUN = frozenset({"loading", "started", "resumed", "restarted", "stalled", "trial"})
"""After an end they say that the run goes on."""
KEPT = BEGUN - {"trial"} | {"stage", "checkpoint", "handoff", "noticed", "over"}
KEPT |= {"published", "failed", "stopped"}
"""The events that tell how a run went; the others (samples, progress, …) stay in the store."""

_STAMP = re.compile(r"-(\d{8}-\d{6})-[0-9a-f]{4,12}$")


@dataclass(frozen=True)
class StoreEvent:
    """One line of a run's journal, as much of it as the registry keeps."""

    at: float
    kind: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Papers:
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
    search: SearchFound | None = None
    trials: frozenset[str] = frozenset()
    """The runs that a search's trials had."""
    request: RequestPaper | None = None
    """What a service was asked; None for a run that was started without one."""
    faults: tuple[Fault, ...] = field(default=())


def runs_in(store: ObjectStore) -> Iterator[tuple[str, frozenset[str]]]:
    """Every run that wrote down what was asked, with the names of its papers."""
    found: dict[str, set[str]] = {}
    for key in store.list("runs/"):
        parts = key.split("/")
        if len(parts) == 3:
            found.setdefault(parts[1], set()).add(parts[2])
    for run, papers in sorted(found.items()):
        if papers & {SPEC, SEARCH, FEDERATION, REQUEST}:
            yield run, frozenset(papers)


def read_papers(store: ObjectStore, run: str, papers: frozenset[str]) -> Papers | Fault | None:
    """What they say; a Fault where they can't be read at all; None where they are gone by now."""
    if not is_run(run):
        return Fault(f"runs/{run[:150]!a}", "no run's name", MENDED)
    try:
        return _read(store, run, papers)
    except NotFound:
        return None
    except (StoreRefused, StoreUnreachable):
        raise
    except StoreError as error:
        return Fault(f"runs/{run}", str(error)[:300], MENDED)


def _kind(papers: frozenset[str]) -> Kind:
    """Of a run that no service was asked for."""
    if SEARCH in papers:
        return "search"
    return "federate" if FEDERATION in papers else "finetune"


def _read(store: ObjectStore, run: str, papers: frozenset[str]) -> Papers:
    prefix, faults = f"runs/{run}/", list[Fault]()
    spec, digest = _spec(store, prefix + SPEC, faults) if SPEC in papers else (None, None)
    events = _events(store, prefix + EVENTS, faults) if EVENTS in papers else []
    asked = asked_of(store, prefix + SEARCH, faults) if SEARCH in papers else None
    kept = tuple(event for event in map(_kept, events) if event is not None)
    status, reason, detail = _status(events)
    request = _request(store, prefix + REQUEST, faults) if REQUEST in papers else None
    begun = _stamp(run) or (kept[0].at if kept else 0.0)
    rows = trials_of(events, prefix + EVENTS, faults) if SEARCH in papers else []
    return Papers(
        id=run,
        name=request.name if request else spec.name if spec else run[:63],
        kind=request.kind if request else _kind(papers),
        spec_sha256=sha256(request.text.encode()).hexdigest() if request else digest,
        workers=request.workers if request else _most_workers(spec),
        created_at=begun,
        updated_at=max([begun, *(event.at for event in kept)]),
        status=status,
        reason=reason,
        detail=detail,
        attempt=max(
            (counted(event.get("attempt")) for event in events),
            default=0,
        ),
        request=request,
        events=kept,
        search=found_by(run, asked, rows, events) if asked else None,
        trials=frozenset(row.run for row in rows if row.run),
        faults=tuple(faults),
    )


def _request(store: ObjectStore, key: str, faults: list[Fault]) -> RequestPaper | None:
    found = read_request(store, key)
    if isinstance(found, Fault):
        faults.append(found)
        return None
    return found


def _spec(store: ObjectStore, key: str, faults: list[Fault]) -> tuple[Spec | None, str | None]:
    text = store.read(key, 0, MOST_BYTES + 1)
    digest = sha256(text).hexdigest()
    try:
        return validate_spec(mapping(text)), digest
    except InputError as wrong:
        first = wrong.faults[0]
        faults.append(Fault(key, f"{first.key}: {first.problem}"[:300], MENDED))
    except (*NOT_YAML, RecursionError) as wrong:
        faults.append(Fault(key, f"no spec: {str(wrong)[:200]!a}", MENDED))
    return None, digest


def _events(store: ObjectStore, key: str, faults: list[Fault]) -> list[dict[str, Any]]:
    check_key(key)
    text = store.read(key, 0, LARGEST_JOURNAL + 1)
    if len(text) > LARGEST_JOURNAL:
        faults.append(Fault(key, f"only its first {LARGEST_JOURNAL} bytes were read", MENDED))
    events, _ = whole_events(text, 0)
    torn = text.count(b"\n") - len(events)
    if torn > 0:
        faults.append(Fault(key, f"{torn} of its lines are no events", "The rest was read."))
    return events


def _kept(event: Mapping[str, Any]) -> StoreEvent | None:
    kind = event.get("event")
    if not isinstance(kind, str) or kind not in KEPT:
        return None
    facts = {
        told(name)[:100]: told(value)[:LONGEST_WORDS] if isinstance(value, str) else value
        for name, value in event.items()
        if name not in ("event", "time") and isinstance(value, str | int | float | bool)
    }
    # Through the journal's own writing once more: a reader of JSON takes NaN, a database does not.
    return StoreEvent(moment(event), kind, json.loads(line_of_event(facts)))


def _status(events: list[dict[str, Any]]) -> tuple[Status, Reason | None, str]:
    status, reason, detail = Status.PLANNED, None, ""
    for event in events:
        kind, why = str(event.get("event")), told(str(event.get("why", "")))
        if kind == "published":
            return Status.DONE, None, ""
        if kind == "failed":
            status, reason, detail = Status.FAILED, Reason.CRASHED, why
        elif kind == "stopped":
            status, reason, detail = Status.STOPPED, Reason.USER, why
        elif kind in BEGUN or status is Status.PLANNED:
            status, reason, detail = Status.RUNNING, None, ""
    return status, reason, detail


def _most_workers(spec: Spec | None) -> int:
    if spec is None:
        return 1
    workers = spec.cluster.workers
    return min(workers if isinstance(workers, int) else workers.max, LARGEST)


def _stamp(run: str) -> float | None:
    """When its id was made, which is in it."""
    found = _STAMP.search(run)
    if found is None:
        return None
    try:
        return datetime.strptime(found[1], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
