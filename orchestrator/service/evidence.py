"""What the store tells of a run whose job is over or can't be found: its adapter, its last words.

Asked of the store and not of the job, since a job that was killed after its commit has made all
that it was to make.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from jobs.errors import NotFound
from jobs.lease import read_lease
from jobs.store.commit import LOOK_BACK
from jobs.store.journal import whole_events
from jobs.store.listing import read_committed
from jobs.store.manifest import BadManifest, Manifest
from jobs.store.objects import ObjectStore
from jobs.store.pointer import BadPointer, read_pointer
from jobs.store.runs import EVENTS
from jobs.store.versions import committed_versions
from orchestrator.registry.values import Run, told
from orchestrator.service.policy import Told

LARGEST = 64 << 20
DECIDED = ("promoted", "kept")
"""The last event of a retraining that made an adapter."""
FRESH_S = 60.0
"""A lease that was beaten within this time is a living job's; it is beaten every ten seconds."""


@dataclass(frozen=True)
class Found:
    """What there is of a run in its store."""

    told: Told
    manifest: Manifest | None = None
    pointer: tuple[int, int] | None = None
    """The version that the bare name means, and the number of its newest move."""


def found_of(store: ObjectStore, run: Run, *, now: float | None = None) -> Found:
    """Looks at the run's papers and its name's versions. Raises StoreUnreachable."""
    events = _events(store, run)
    # Of a retraining the commit is not the end: whether it takes over is still to be decided.
    whole = run.kind != "retrain" or any(event.get("event") in DECIDED for event in events)
    manifest = _manifest(store, run) if whole else None
    why = next((str(e.get("why", "")) for e in reversed(events) if e.get("event") == "failed"), "")
    words = Told(
        adapter=manifest.label if manifest else None,
        nothing_new=any(e.get("event") == "nothing new" for e in events),
        why=told(why),
        alive=_alive(store, run, time.time() if now is None else now),
    )
    return Found(words, manifest, _pointer(store, run.name) if manifest else None)


def _events(store: ObjectStore, run: Run) -> list[dict[str, Any]]:
    key = f"runs/{run.id}/{EVENTS}"
    try:
        return whole_events(store.read(key, 0, LARGEST), 0)[0]
    except NotFound:
        return []


def _manifest(store: ObjectStore, run: Run) -> Manifest | None:
    """The newest version that this run committed, or a trial of it."""
    for version in reversed(committed_versions(store, run.name)[-LOOK_BACK:]):
        try:
            manifest = read_committed(store, run.name, version)
        except (BadManifest, NotFound):
            continue
        if run.id in (manifest.run, manifest.search):
            return manifest
    return None


def _pointer(store: ObjectStore, name: str) -> tuple[int, int] | None:
    try:
        there = read_pointer(store, name)
    except BadPointer:
        return None
    return None if there is None else (there.version, there.moves[-1].number)


def _alive(store: ObjectStore, run: Run, now: float) -> bool:
    lease = read_lease(store, run.id)
    if lease is None:
        return False
    fresh = now - lease["time"] < FRESH_S
    return not lease["ended"] and lease["attempt"] == run.attempt and fresh
