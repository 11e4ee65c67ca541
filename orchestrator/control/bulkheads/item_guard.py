"""The guard around each item of a loop: an unexpected exception ends the item, not the loop.

This is the only place that catches every Exception. What is no property of the item passes: the
database, a store or a cluster that does not answer, and a lease or a revision that was lost.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from jobs.errors import StoreRefused, StoreUnreachable, Unreachable
from orchestrator.control.metrics import ServiceMetrics
from orchestrator.registry.errors import DatabaseUnreachable, LeaseHeld, LeaseLost, LostUpdate

PASSING_ERRORS = (
    Unreachable,
    StoreUnreachable,
    StoreRefused,
    DatabaseUnreachable,
    LeaseHeld,
    LeaseLost,
    LostUpdate,
    # Inside a transaction the errors of the database are not translated yet.
    OperationalError,
    InterfaceError,
    PoolTimeout,
)
MIN_WAIT_S, MAX_WAIT_S = 5.0, 600.0
MAX_FAILURES = 10
"""Failures in a row after which an active run is ended; with the waits, after half an hour."""
MAX_REMEMBERED = 10_000
"""Failed items that a guard remembers; the oldest are forgotten."""

StepResult = TypeVar("StepResult")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ItemFailure:
    """An unexpected exception at an item."""

    error_id: str
    error: str
    """Its class; its text may contain secrets, and stays in the log."""
    count: int
    """Failures of this item in a row."""

    @property
    def detail(self) -> str:
        """Return the detail of the item."""
        return (
            f"the service failed at it ({self.error}, error {self.error_id}); its log has the "
            "traceback under this id"
        )


@dataclass(frozen=True)
class _Wait:
    count: int
    until: float


class ItemGuard:
    """Guards the items of one loop."""

    def __init__(
        self,
        metrics: ServiceMetrics,
        *,
        on_item: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics, self._on_item, self._clock = metrics, on_item, clock
        self._waits: dict[tuple[str, str], _Wait] = {}

    def run(
        self,
        kind: str,
        item: str,
        step: Callable[[], StepResult],
        *,
        end: Callable[[ItemFailure], object],
    ) -> StepResult | None:
        """Return the result of a step. If it raises, call `end` with the failure and return None.

        An item that failed is left alone for a while, which doubles with each failure in a row.
        """
        self._on_item()
        wait = self._waits.get((kind, item))
        if wait is not None and self._clock() < wait.until:
            return None
        try:
            result = step()
        except PASSING_ERRORS:
            raise
        except Exception as error:
            self._end(kind, item, end, self._record_failure(kind, item, error))
            return None
        self._waits.pop((kind, item), None)
        return result

    def _end(
        self, kind: str, item: str, end: Callable[[ItemFailure], object], failure: ItemFailure
    ) -> None:
        try:
            end(failure)
        except PASSING_ERRORS:
            raise
        except Exception:
            log.exception(
                "error %s: %s %s cannot be ended and is tried again", failure.error_id, kind, item
            )

    def _record_failure(self, kind: str, item: str, error: Exception) -> ItemFailure:
        previous = self._waits.pop((kind, item), None)
        count = 1 if previous is None else previous.count + 1
        failure = ItemFailure(secrets.token_hex(6), type(error).__name__, count)
        wait_s = min(MAX_WAIT_S, MIN_WAIT_S * 2.0 ** min(count - 1, 16))
        self._waits[kind, item] = _Wait(count, self._clock() + wait_s)
        while len(self._waits) > MAX_REMEMBERED:
            self._waits.pop(next(iter(self._waits)))
        self._metrics.item_failures.labels(kind).inc()
        log.error(
            "error %s: the service failed at %s %s (%s, failure %s in a row)",
            *(failure.error_id, kind, item, failure.error, count),
            exc_info=error,
        )
        return failure
