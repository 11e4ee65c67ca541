"""Fire schedules: each due time once, however many schedulers run.

One transaction writes the firing, whose key is the schedule and the due time, the run that it
starts, and the schedule's next due time. Only the run's request is written before, under an id that
derives from the due time, so that a second scheduler would write the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from sqlalchemy.orm import Session

from jobs.errors import AlreadyExists, InputError, StoreError
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.control.clock import Clock
from orchestrator.control.cron import (
    compute_jitter_offset,
    find_latest_time,
    find_next_time,
    list_times_until,
)
from orchestrator.control.intake import Intake
from orchestrator.control.metrics import ServiceMetrics
from orchestrator.control.new_data import compute_data_fingerprint
from orchestrator.control.resolve import SubmitRequest
from orchestrator.registry import run_flags, runs, schedules
from orchestrator.registry.database import Database
from orchestrator.registry.errors import DuplicateKey, LeaseLost, LostUpdate, UnknownItem
from orchestrator.registry.leases import Lease, LeaseKeeper
from orchestrator.registry.lifecycle import Reason
from orchestrator.registry.run_request import RunRequest, write_request
from orchestrator.registry.schedules import FiringOutcome, NewSchedule, Schedule

LEASE_NAME = "scheduler"
LEASE_S = 30.0
MISSED_AFTER_S = 60.0
"""A due time that fires later than this counts as missed: no scheduler was running."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _FiringPlan:
    """The outcome of one due time, as far as it is known before the transaction."""

    next_at: float | None
    outcome: FiringOutcome
    request: RunRequest | None = None
    """The run to start, under the id `run_id`."""
    run_id: str = ""
    data_fingerprint: str | None = None


class Scheduler:
    """Fires the schedules that are due."""

    def __init__(
        self,
        database: Database,
        intake: Intake,
        clock: Clock,
        *,
        holder: str,
        metrics: ServiceMetrics,
        store_opener: Callable[[str], ObjectStore] = open_store,
        fingerprinter: Callable[[str], str | None] = compute_data_fingerprint,
        lease_s: float = LEASE_S,
    ) -> None:
        self._database, self._intake, self._clock = database, intake, clock
        self._open, self._fingerprint_data, self._metrics = store_opener, fingerprinter, metrics
        self._lease = LeaseKeeper(database, LEASE_NAME, holder, seconds=lease_s)

    def fire_due(self) -> int:
        """Fire the schedules that are due. Return how many times. Raise DatabaseUnreachable."""
        lease = self._lease.ensure()
        if lease is None:
            return 0
        with self._database.read() as session:
            due = schedules.list_due(session, by=self._clock.now())
        return sum(self._fire_schedule(schedule, lease) for schedule in due)

    def close(self) -> None:
        """Release the lease, so that another service can fire at once."""
        self._lease.release()

    def _fire_schedule(self, schedule: Schedule, lease: Lease) -> int:
        """Fire the due times of one schedule; after a failure the next call tries again."""
        count = 0
        for due_at in self._list_due_times(schedule):
            try:
                schedule = self._fire_once(schedule, due_at, lease)
            except (DuplicateKey, LostUpdate, UnknownItem, LeaseLost) as conflict:
                # Another scheduler fired it, or a user changed it: the next call reads it again.
                log.info("schedule %s: %s", schedule.name, conflict)
                break
            except StoreError as error:
                log.warning("schedule %s: cannot read or write its store: %s", schedule.name, error)
                break
            count += 1
        return count

    def _list_due_times(self, schedule: Schedule) -> Sequence[float]:
        """List the due times to fire now: all that were missed, or only the latest."""
        assert schedule.next_at is not None
        now, offset = self._clock.now(), _compute_offset(schedule)
        first, until = schedule.next_at - offset, now - offset
        if schedule.missed == "all":
            times = list_times_until(schedule.cron, schedule.time_zone, first, until)
        else:
            times = [find_latest_time(schedule.cron, schedule.time_zone, first, until)]
        return [due_at + offset for due_at in times]

    def _fire_once(self, schedule: Schedule, due_at: float, lease: Lease) -> Schedule:
        plan = self._plan_firing(schedule, due_at)
        if plan.request is not None:
            try:
                write_request(self._open(plan.request.store), plan.run_id, plan.request)
            except AlreadyExists:
                log.info("run %s: the request was already written", plan.run_id)
        with self._database.write() as session:
            outcome, run = self._start_run(session, schedule, plan)
            updated = schedules.fire(
                session,
                schedule,
                due_at=due_at,
                next_at=plan.next_at,
                outcome=outcome,
                run=run,
                lease=lease,
                fired_at=self._clock.now(),
                data_fingerprint=plan.data_fingerprint if run is not None else None,
            )
        self._metrics.firings.labels(outcome).inc()
        self._metrics.schedule_lag_s.set(max(0.0, self._clock.now() - due_at))
        log.info("schedule %s at %.0f: %s %s", schedule.name, due_at, outcome, run or "")
        return updated

    def _plan_firing(self, schedule: Schedule, due_at: float) -> _FiringPlan:
        next_at = find_next_firing(schedule, due_at)
        is_missed = self._clock.now() - due_at > MISSED_AFTER_S
        if is_missed and schedule.missed == "skip":
            return _FiringPlan(next_at, "skipped")
        try:
            request = self._intake.resolve(make_submission(schedule))
            fingerprint = self._fingerprint_data(request.data) if schedule.only_new_data else None
        except InputError as invalid:
            # Its store or cluster was removed from the configuration, or its data cannot exist.
            # The other schedules continue.
            log.error("schedule %s cannot be fired: %s", schedule.name, invalid)
            return _FiringPlan(next_at, "refused")
        if schedule.only_new_data and fingerprint in (None, schedule.data_fingerprint):
            return _FiringPlan(next_at, "no_new_data")
        if schedule.concurrency == "skip" and self._has_unfinished_runs(schedule):
            # Checked before the request is written: a rebuild would restore a run from it.
            return _FiringPlan(next_at, "skipped")
        run_id = _make_run_id(request.name, schedule, due_at)
        return _FiringPlan(next_at, "run", request, run_id, fingerprint)

    def _has_unfinished_runs(self, schedule: Schedule) -> bool:
        with self._database.read() as session:
            return bool(schedules.list_unfinished_runs(session, schedule))

    def _start_run(
        self, session: Session, schedule: Schedule, plan: _FiringPlan
    ) -> tuple[FiringOutcome, str | None]:
        if plan.request is None:
            return plan.outcome, None
        unfinished = schedules.list_unfinished_runs(session, schedule)
        if schedule.concurrency == "replace":
            for run in unfinished:
                run_flags.request_stop(session, run, Reason.REPLACED)
        runs.add(session, plan.run_id, plan.request)
        return ("queued" if unfinished else "run"), plan.run_id


def make_submission(schedule: Schedule | NewSchedule) -> SubmitRequest:
    """Make the submission of a schedule's firings."""
    return SubmitRequest(
        kind=schedule.kind,
        spec=dict(schedule.spec),
        project=schedule.project,
        cluster=schedule.cluster,
        priority=schedule.priority,
    )


def find_next_firing(schedule: Schedule | NewSchedule, after: float) -> float | None:
    """Return when a schedule fires next after a time; None if it never does."""
    offset = _compute_offset(schedule)
    next_time = find_next_time(schedule.cron, schedule.time_zone, after - offset)
    return None if next_time is None else next_time + offset


def _compute_offset(schedule: Schedule | NewSchedule) -> float:
    return compute_jitter_offset(schedule.project, schedule.name, schedule.jitter_s)


def _make_run_id(name: str, schedule: Schedule, due_at: float) -> str:
    """Make a run id from the schedule and the due time: every scheduler makes the same."""
    digest = sha256(f"{schedule.project}/{schedule.name}/{schedule.id}/{due_at}".encode())
    stamp = datetime.fromtimestamp(due_at, UTC)
    return f"{name}-{stamp:%Y%m%d-%H%M%S}-{digest.hexdigest()[:12]}"
