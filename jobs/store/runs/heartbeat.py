"""A job's heartbeat: written to the run's folder while its driver lives, and ended with it.

Its reader knows that the driver is alive, even if no cluster can be reached. The reader judges its
age by the store's clock; the time in it is the writer's, for people. An unreachable store costs a
heartbeat and nothing else; a later attempt's heartbeat is left alone.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any, Self

from jobs.errors import AlreadyExists, JobsError, NotInStore, WriteConflict
from jobs.store.base import ObjectStore
from jobs.store.runs.run_store import RunStore, format_run_key
from jobs.store.strict_json import load_strictly

HEARTBEAT = "heartbeat.json"
INTERVAL_S = 10.0
FINAL_BEAT_TIMEOUT_S = 10.0
"""The end of a job waits so long for its last heartbeat: an unreachable store delays nobody."""
MAX_BYTES = 4096

log = logging.getLogger(__name__)


class Heartbeat:
    """Writes this attempt's heartbeat from a thread while the block runs."""

    def __init__(self, runs: RunStore, attempt: int, *, interval_s: float = INTERVAL_S) -> None:
        self._runs, self._attempt, self._interval_s = runs, attempt, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="heartbeat")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(FINAL_BEAT_TIMEOUT_S)

    def _run(self) -> None:
        while True:
            is_final = self._stop.is_set()
            try:
                if has_later_attempt(self._runs, self._attempt):
                    log.warning(
                        "run %s: a later attempt now writes the heartbeat", self._runs.run_id
                    )
                    return
                self._write_beat(is_final=is_final)
            except (AlreadyExists, WriteConflict):
                # Another attempt wrote between; the next beat reads which.
                if not is_final:
                    continue
            except JobsError as error:
                log.warning(
                    "run %s: the heartbeat could not be written: %s", self._runs.run_id, error
                )
            if is_final:
                return
            self._stop.wait(self._interval_s)

    def _write_beat(self, *, is_final: bool) -> None:
        store, key = self._runs.store, self._runs.key(HEARTBEAT)
        current = store.head(key)
        payload = {"time": time.time(), "attempt": self._attempt, "ended": is_final}
        store.put(
            key,
            json.dumps(payload).encode(),
            create_only=current is None,
            if_match=current.etag if current else None,
        )


def read_heartbeat(store: ObjectStore, run: str) -> dict[str, Any] | None:
    """Return the run's heartbeat: time, attempt, ended; None if there is none that can be read."""
    try:
        values = load_strictly(store.read(format_run_key(run, HEARTBEAT), 0, MAX_BYTES))
        return {
            "time": float(values["time"]),
            "attempt": int(values["attempt"]),
            "ended": bool(values.get("ended", False)),
        }
    # OverflowError: 1e999 is JSON, and infinite.
    except (NotInStore, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def has_later_attempt(runs: RunStore, attempt: int) -> bool:
    """Return whether a later attempt has started. Raise StoreError if that is unknown."""
    heartbeat = read_heartbeat(runs.store, runs.run_id)
    return heartbeat is not None and heartbeat["attempt"] > attempt
