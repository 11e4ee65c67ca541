"""Read from the store how a run ended whose job has ended or is absent: its adapter, its error.

The store decides and not the job, because a job that was killed after its commit has succeeded.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from jobs.errors import NotInStore, Untrusted
from jobs.store.adapters.commit import LOOK_BACK
from jobs.store.adapters.listing import find_newest
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.pointer import BadPointer, read_pointer
from jobs.store.adapters.versions import list_versions
from jobs.store.base import ObjectStore
from jobs.store.runs.heartbeat import HEARTBEAT, read_heartbeat
from jobs.store.runs.journal import parse_events
from jobs.store.runs.run_store import EVENTS, format_run_key
from jobs.train.monitor.phases import RunStart, collect_starts
from orchestrator.control.policy import RunOutcome
from orchestrator.control.projects.pointer_moves import DECISION_EVENTS, Promotion, find_promotion
from orchestrator.registry.values import Run, clean_text

MAX_JOURNAL_BYTES = 64 << 20
HEARTBEAT_TIMEOUT_S = 60.0
"""A job with a heartbeat in this period is alive; it sends one every ten seconds."""


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredOutcome:
    """A run's outcome, with the manifest and pointer to record."""

    outcome: RunOutcome
    manifest: Manifest | None = None
    pointer: tuple[int, int] | None = None
    """The version that the bare name resolves to, and the number of the pointer's last move."""
    promotion: Promotion | None = None
    """The move of the pointer that the job left to the service."""
    starts: tuple[RunStart, ...] = ()
    """The phases of its starts, as its events tell them."""


def read_outcome(store: ObjectStore, run: Run) -> StoredOutcome:
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
        alive=_is_alive(store, run),
    )
    starts = tuple(collect_starts(events))
    if manifest is None:
        return StoredOutcome(outcome, starts=starts)
    promotion = find_promotion(events, manifest) if run.kind == "retrain" else None
    pointer = read_pointer_move(store, run.name)
    return StoredOutcome(outcome, manifest, pointer, promotion, starts)


def read_earlier_outcome(store: ObjectStore, run: Run) -> StoredOutcome:
    """Read the outcome of a run that the store says has started. Raise StoreError.

    After a backup was restored, a run that waits may have ended, and its cluster may have forgotten
    it: it must not run again. A run that never started costs one request.
    """
    if store.head(format_run_key(run.id, EVENTS)) is None:
        return StoredOutcome(RunOutcome())
    return read_outcome(store, run)


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
        store,
        run.name,
        versions,
        lambda manifest: run.id in (manifest.run, manifest.search),
        # The service signs it only now.
        trusts_all=True,
    )


def read_pointer_move(store: ObjectStore, name: str) -> tuple[int, int] | None:
    """Return the version that a bare name resolves to, and the number of the last move."""
    try:
        pointer = read_pointer(store, name)
    except (BadPointer, Untrusted) as error:
        log.warning("the pointer of %s is not recorded: %s", name, error)
        return None
    return None if pointer is None else (pointer.version, pointer.moves[-1].number)


def _is_alive(store: ObjectStore, run: Run) -> bool:
    """Return whether this attempt's heartbeat is fresh, whatever the clock of its writer says."""
    heartbeat = read_heartbeat(store, run.id)
    if heartbeat is None or heartbeat["ended"] or heartbeat["attempt"] != run.attempt:
        return False
    age = store.measure_age(format_run_key(run.id, HEARTBEAT))
    return age is not None and age < HEARTBEAT_TIMEOUT_S
