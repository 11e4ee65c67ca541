"""What the store tells of a run whose job is over or can't be found: its adapter, its last words.

Asked of the store and not of the job, since a job that was killed after its commit has made all
that it was to make.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from jobs.errors import NotInStore
from jobs.store.adapters.commit import LOOK_BACK
from jobs.store.adapters.listing import read_committed
from jobs.store.adapters.manifest import BadManifest, Manifest
from jobs.store.adapters.pointer import BadPointer, read_pointer
from jobs.store.adapters.versions import list_versions
from jobs.store.base import ObjectStore
from jobs.store.runs.heartbeat import read_heartbeat
from jobs.store.runs.journal import parse_events
from jobs.store.runs.run_store import EVENTS, format_run_key
from orchestrator.control.policy import RunOutcome
from orchestrator.registry.values import Run, clean_text

MAX_JOURNAL_BYTES = 64 << 20
DECISION_EVENTS = ("promoted", "kept")
"""The last event of a retraining that made an adapter."""
HEARTBEAT_TIMEOUT_S = 60.0
"""A lease that was beaten within this time is a living job's; it is beaten every ten seconds."""


@dataclass(frozen=True)
class StoredOutcome:
    """What there is of a run in its store."""

    outcome: RunOutcome
    manifest: Manifest | None = None
    pointer: tuple[int, int] | None = None
    """The version that the bare name means, and the number of its newest move."""


def read_outcome(store: ObjectStore, run: Run, *, now: float | None = None) -> StoredOutcome:
    """Looks at the run's papers and its name's versions. Raises StoreUnreachable."""
    events = _read_events(store, run)
    # Of a retraining the commit is not the end: whether it takes over is still to be decided.
    is_complete = run.kind != "retrain" or any(
        event.get("event") in DECISION_EVENTS for event in events
    )
    manifest = _find_manifest(store, run) if is_complete else None
    message = next(
        (
            str(last_event.get("why", ""))
            for last_event in reversed(events)
            if last_event.get("event") == "failed"
        ),
        "",
    )
    outcome = RunOutcome(
        adapter=manifest.label if manifest else None,
        no_new_data=any(last_event.get("event") == "nothing new" for last_event in events),
        message=clean_text(message),
        alive=_is_alive(store, run, time.time() if now is None else now),
    )
    return StoredOutcome(outcome, manifest, _read_pointer(store, run.name) if manifest else None)


def _read_events(store: ObjectStore, run: Run) -> list[dict[str, Any]]:
    key = format_run_key(run.id, EVENTS)
    try:
        return parse_events(store.read(key, 0, MAX_JOURNAL_BYTES), 0)[0]
    except NotInStore:
        return []


def _find_manifest(store: ObjectStore, run: Run) -> Manifest | None:
    """The newest version that this run committed, or a trial of it."""
    for version in reversed(list_versions(store, run.name)[-LOOK_BACK:]):
        try:
            manifest = read_committed(store, run.name, version)
        except (BadManifest, NotInStore):
            continue
        if run.id in (manifest.run, manifest.search):
            return manifest
    return None


def _read_pointer(store: ObjectStore, name: str) -> tuple[int, int] | None:
    try:
        pointer = read_pointer(store, name)
    except BadPointer:
        return None
    return None if pointer is None else (pointer.version, pointer.moves[-1].number)


def _is_alive(store: ObjectStore, run: Run, now: float) -> bool:
    heartbeat = read_heartbeat(store, run.id)
    if heartbeat is None:
        return False
    is_fresh = now - heartbeat["time"] < HEARTBEAT_TIMEOUT_S
    return not heartbeat["ended"] and heartbeat["attempt"] == run.attempt and is_fresh
