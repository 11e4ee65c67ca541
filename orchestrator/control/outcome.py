"""Read from the store how a run ended whose job has ended or is absent: its adapter, its error.

The store decides and not the job, because a job that was killed after its commit has succeeded.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from jobs.errors import NotInStore
from jobs.store.adapters.commit import LOOK_BACK
from jobs.store.adapters.listing import find_newest
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.pointer import BadPointer, read_pointer
from jobs.store.adapters.versions import list_versions
from jobs.store.base import ObjectStore
from jobs.store.runs.heartbeat import read_heartbeat
from jobs.store.runs.journal import parse_events
from jobs.store.runs.run_store import EVENTS, format_run_key
from orchestrator.control.policy import RunOutcome
from orchestrator.registry.values import Run, clean_text

MAX_JOURNAL_BYTES = 64 << 20
DECISION_EVENTS = ("promoted", "not_promoted")
"""The last events of a retraining that made an adapter."""
HEARTBEAT_TIMEOUT_S = 60.0
"""A job with a heartbeat in this period is alive; it sends one every ten seconds."""


@dataclass(frozen=True)
class StoredOutcome:
    """A run's outcome, with the manifest and pointer to record."""

    outcome: RunOutcome
    manifest: Manifest | None = None
    pointer: tuple[int, int] | None = None
    """The version that the bare name resolves to, and the number of the pointer's last move."""


def read_outcome(store: ObjectStore, run: Run, *, now: float | None = None) -> StoredOutcome:
    """Read the run's journal and heartbeat, and the versions of its name. Raise StoreError."""
    events = _read_events(store, run)
    # A retraining has not ended with its commit: it still decides whether to promote.
    is_complete = run.kind != "retrain" or any(
        event.get("event") in DECISION_EVENTS for event in events
    )
    manifest = _find_manifest(store, run) if is_complete else None
    message = next(
        (str(event.get("why", "")) for event in reversed(events) if event.get("event") == "failed"),
        "",
    )
    outcome = RunOutcome(
        adapter=manifest.label if manifest else None,
        no_new_data=any(event.get("event") == "no_new_data" for event in events),
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
    """Return the newest version that this run or one of its trials committed."""
    versions = list_versions(store, run.name)[-LOOK_BACK:]
    return find_newest(
        store, run.name, versions, lambda manifest: run.id in (manifest.run, manifest.search)
    )


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
