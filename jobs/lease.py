"""A job's lease: beaten into the run's folder for as long as its driver lives, and ended with it.

Who reads it knows the driver alive where no cluster can tell. A store that is away costs a beat and
nothing else; a lease that a later attempt holds is left to it.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from types import TracebackType
from typing import Any, Self

from jobs.errors import AlreadyThere, Changed, JobsError, NotFound
from jobs.store.objects import ObjectStore
from jobs.store.runs import RunStore
from jobs.store.strict_json import load_strictly

LEASE = "lease.json"
BEAT_S = 10.0
LAST_S = 10.0
"""Seconds that the end of a job waits for its last beat: a store that is away holds up nobody."""
LARGEST = 4096

log = logging.getLogger(__name__)


class Lease:
    """Inside its block this attempt's lease is beaten, from a thread of its own."""

    def __init__(self, runs: RunStore, attempt: int, *, every: float = BEAT_S) -> None:
        self._runs, self._attempt, self._every = runs, attempt, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True, name="lease")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(LAST_S)

    def _live(self) -> None:
        while True:
            ended = self._over.is_set()
            try:
                if later_attempt(self._runs, self._attempt):
                    log.warning("run %s: a later attempt has its lease", self._runs.run_id)
                    return
                self._beat(ended=ended)
            except (AlreadyThere, Changed):
                # Somebody wrote between: who it was, the next beat sees.
                if not ended:
                    continue
            except JobsError as away:
                log.warning("run %s: its lease is not beaten: %s", self._runs.run_id, away)
            if ended:
                return
            self._over.wait(self._every)

    def _beat(self, *, ended: bool) -> None:
        store, key = self._runs.store, self._runs.key(LEASE)
        there = store.head(key)
        told = {"time": time.time(), "attempt": self._attempt, "ended": ended}
        store.put(
            key,
            json.dumps(told).encode(),
            create_only=there is None,
            if_match=there.etag if there else None,
        )


def read_lease(store: ObjectStore, run: str) -> dict[str, Any] | None:
    """What the run's lease says: time, attempt, ended; None where there is none to be read."""
    try:
        found = load_strictly(store.read(f"runs/{run}/{LEASE}", 0, LARGEST))
        return {
            "time": float(found["time"]),
            "attempt": int(found["attempt"]),
            "ended": bool(found.get("ended", False)),
        }
    # OverflowError: 1e999 is JSON, and infinite.
    except (NotFound, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def later_attempt(runs: RunStore, attempt: int) -> bool:
    """Whether a later attempt of this run has begun. Raises StoreError where that can't be told."""
    found = read_lease(runs.store, runs.run_id)
    return found is not None and found["attempt"] > attempt
