"""The watchdog: each worker reports its position from a thread, so that a hung one can be named.

Reports go through the process group's own key-value store, every few seconds and not every step, so
that a slow link pays nothing for them.
"""

from __future__ import annotations

import json
import os
import threading
import time
from datetime import timedelta
from typing import Any, Protocol, Self

REPORT_INTERVAL_S = 2.0
STALE_S = 4 * REPORT_INTERVAL_S
"""A worker without a report for so long does not run at all."""
STORE_TIMEOUT_S = 5.0
"""Seconds that the store, which lives in rank 0's process, may take to answer."""


class KeyValueStore(Protocol):
    """The part of torch's process group store that is used."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...


class Watchdog:
    """This worker's position in the run, beside the others'."""

    def __init__(self, rank: int, world_size: int, store: KeyValueStore | None) -> None:
        self._rank, self._world_size, self._store = rank, world_size, store
        self.position, self._since = "loading", time.time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._publish_reports, daemon=True, name="watchdog")

    def __enter__(self) -> Self:
        if self._store is not None and self._world_size > 1:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def report_position(self, position: str) -> None:
        """Report where this worker is now."""
        self.position, self._since = position, time.time()

    def describe_stragglers(self) -> str:
        """Describe the workers that the others wait for, and their last position."""
        reports = self._collect_reports()
        if reports is None:
            return "rank 0, which stores the reports of the others, does not answer"
        now, stragglers = time.time(), []
        for rank in range(self._world_size):
            if rank == self._rank:
                continue
            report = reports.get(rank)
            if report is None:
                stragglers.append(f"rank {rank} does not answer")
            elif now - report["heard"] > STALE_S:
                silent = now - report["heard"]
                where = f"{report['host']}, last at {report['position']}"
                stragglers.append(f"rank {rank} ({where}) was silent for {silent:.0f} s")
            elif report["position"] != self.position:
                since = now - report["since"]
                where = f"{report['host']}, at {report['position']} for {since:.0f} s"
                stragglers.append(
                    f"rank {rank} ({where}) is behind rank {self._rank}, "
                    f"which is at {self.position}"
                )
        return (
            "; ".join(stragglers)
            or "every rank reports that it is waiting: the network is interrupted"
        )

    def _collect_reports(self) -> dict[int, dict[str, Any]] | None:
        """Return the other workers' last reports, or None if the store does not answer in time."""
        reports: dict[int, dict[str, Any]] = {}

        def collect() -> None:
            for rank in range(self._world_size):
                if rank != self._rank and (report := self._read_report(rank)) is not None:
                    reports[rank] = report

        # In a thread, which may be abandoned: some of the store's calls wait without end, whatever
        # their time-out, if rank 0's process or machine stands still.
        thread = threading.Thread(target=collect, daemon=True, name="watchdog-query")
        thread.start()
        thread.join(STORE_TIMEOUT_S)
        return None if thread.is_alive() else reports

    def _read_report(self, rank: int) -> dict[str, Any] | None:
        if self._store is None:
            return None
        try:
            if not self._store.check([_make_key(rank)]):
                return None
            report: dict[str, Any] = json.loads(self._store.get(_make_key(rank)))
        except (RuntimeError, ValueError):
            return None
        return report

    def _publish_reports(self) -> None:
        while True:
            report = {"position": self.position, "since": self._since, "heard": time.time(),
                    "host": os.uname().nodename}  # fmt: skip
            try:
                assert self._store is not None
                self._store.set(_make_key(self._rank), json.dumps(report))
            except RuntimeError:
                return  # rank 0, where the store lives, is gone
            if self._stop.wait(REPORT_INTERVAL_S):
                return


def open_default_store() -> KeyValueStore | None:
    """Return the store of torch's default process group, with a time-out of its own."""
    import torch

    if not torch.distributed.is_initialized():
        return None
    store: Any = torch.distributed.distributed_c10d._get_default_store()
    # A clone has a connection of its own: a thread that waits on it blocks no other.
    clone: Any = store.clone()
    clone.set_timeout(timedelta(seconds=STORE_TIMEOUT_S))
    return clone  # type: ignore[no-any-return]


def _make_key(rank: int) -> str:
    return f"slora/watchdog/{rank}"
