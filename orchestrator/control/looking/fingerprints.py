"""Fingerprints of the data of schedules, computed in the background."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from jobs.errors import Fault, InputError, StoreUnreachable
from jobs.places.places import Places
from orchestrator.control.looking.look_protocol import LookRequest, LookResult
from orchestrator.control.looking.look_runner import LookRunner

MAX_AGE_S = 60.0
"""A fingerprint that nobody has called for since is computed again."""


class LookPending(Exception):
    """The fingerprint is being computed: ask again later."""


@dataclass(frozen=True)
class _PendingLook:
    result: Future[LookResult]
    started_at: float


class Fingerprints:
    """Computes fingerprints for the schedules of all projects."""

    def __init__(self, runner: LookRunner, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._runner, self._clock = runner, clock
        self._pending = dict[tuple[str, str, Places | None], _PendingLook]()

    def __call__(self, project: str, location: str, places: Places | None) -> str | None:
        """Return the fingerprint of a project's data, as `compute_data_fingerprint` does.

        Nothing outside `places` is read. Raise LookPending until it is known; InputError if it
        cannot be; StoreError.
        """
        self._drop_unclaimed()
        key = (project, location, places)
        pending = self._pending.get(key)
        if pending is None:
            request = LookRequest(question="fingerprint_data", location=location, places=places)
            pending = _PendingLook(self._runner.submit(project, request), self._clock())
            self._pending[key] = pending
        if not pending.result.done():
            raise LookPending
        del self._pending[key]
        if pending.result.cancelled():
            raise LookPending
        return _read_fingerprint(pending.result.result())

    def _drop_unclaimed(self) -> None:
        limit = self._clock() - MAX_AGE_S
        stale = [
            key
            for key, pending in self._pending.items()
            if pending.result.done() and pending.started_at < limit
        ]
        for key in stale:
            del self._pending[key]


def _read_fingerprint(result: LookResult) -> str | None:
    if result.faults:
        raise InputError(result.faults)
    if result.store_error:
        raise StoreUnreachable(result.store_error)
    if result.unchecked:
        problem = f"its files could not be checked: {result.unchecked}"
        remedy = "Use fewer files, or files that the service may read, or a schedule without "
        raise InputError([Fault("data.train", problem, f"{remedy}only_new_data.")])
    return result.fingerprint
