"""Schedules fired: each moment once, with its run, in one transaction, however many schedulers run.

A firing's row has the schedule and the moment for a key, and it is written together with the run
that it starts and with the schedule's next moment. Before it only the run's paper is written, under
a name that follows from the moment: who comes second writes the same.
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
from orchestrator.control.intake import Intake, SubmitRequest, make_new_run, write_request
from orchestrator.control.metrics import ServiceMetrics
from orchestrator.control.new_data import compute_data_fingerprint
from orchestrator.control.resolve import ResolvedRun
from orchestrator.registry import leases, run_flags, runs, schedules
from orchestrator.registry.database import Database
from orchestrator.registry.errors import DuplicateKey, LeaseLost, LostUpdate, UnknownItem
from orchestrator.registry.leases import Lease
from orchestrator.registry.lifecycle import Reason
from orchestrator.registry.schedules import FiringOutcome, Schedule

LEASE_NAME = "scheduler"
LEASE_S = 30.0
MISSED_AFTER_S = 60.0
"""A moment that is fired so late was missed: nobody was there at its time."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _FiringPlan:
    """What one moment comes to, as far as it is known before the transaction."""

    due_at: float
    next_at: float | None
    outcome: FiringOutcome
    submission: SubmitRequest | None = None
    resolved: ResolvedRun | None = None
    run_id: str | None = None
    data_fingerprint: str | None = None


class Scheduler:
    """Fires what is due."""

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
        self._holder, self._metrics, self._open, self._fingerprint_data = (
            holder,
            metrics,
            store_opener,
            fingerprinter,
        )
        self._lease_s = lease_s
        self._lease: Lease | None = None

    def fire_due(self) -> int:
        """Fires what is due by now; how many moments. Raises DatabaseUnreachable."""
        lease = self._ensure_lease()
        if lease is None:
            return 0
        with self._database.read() as session:
            due = schedules.list_due(session, by=self._clock.now())
        return sum(self._fire_schedule(schedule, lease) for schedule in due)

    def close(self) -> None:
        """Let another service fire at once."""
        if self._lease is not None:
            with self._database.write() as session:
                leases.release(session, self._lease)
            self._lease = None

    def _fire_schedule(self, schedule: Schedule, lease: Lease) -> int:
        """The moments of one schedule up to now; a step that fails is tried again by the next."""
        count = 0
        for due_at in self._list_due_times(schedule):
            try:
                schedule = self._fire_once(schedule, due_at, lease)
            except (DuplicateKey, LostUpdate, UnknownItem, LeaseLost) as conflict:
                # Another scheduler, or somebody who changes it: the next look sees how it is.
                log.info("schedule %s: %s", schedule.name, conflict)
                break
            except StoreError as error:
                log.warning("schedule %s: its store does not answer: %s", schedule.name, error)
                break
            count += 1
        return count

    def _list_due_times(self, schedule: Schedule) -> Sequence[float]:
        """Which of its moments are looked at now: all that were missed, or the latest of them."""
        assert schedule.next_at is not None
        now, offset = self._clock.now(), _compute_offset(schedule)
        first, until = schedule.next_at - offset, now - offset
        if schedule.missed == "all":
            times = list_times_until(schedule.cron, schedule.time_zone, first, until)
        else:
            times = [find_latest_time(schedule.cron, schedule.time_zone, first, until)]
        return [moment + offset for moment in times]

    def _fire_once(self, schedule: Schedule, due_at: float, lease: Lease) -> Schedule:
        plan = self._plan_firing(schedule, due_at)
        if plan.submission is not None and plan.resolved is not None and plan.run_id is not None:
            try:
                write_request(
                    self._open(plan.resolved.store), plan.submission, plan.resolved, plan.run_id
                )
            except AlreadyExists:
                log.info("run %s: its paper was written before", plan.run_id)
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
        offset = _compute_offset(schedule)
        next_time = find_next_time(schedule.cron, schedule.time_zone, due_at - offset)
        next_at = None if next_time is None else next_time + offset
        is_missed = self._clock.now() - due_at > MISSED_AFTER_S
        if is_missed and schedule.missed == "skip":
            return _FiringPlan(due_at, next_at, "skipped")
        submission = make_submission(schedule)
        try:
            resolved = self._intake.resolve(submission)
            data_fingerprint = (
                self._fingerprint_data(resolved.data) if schedule.only_new_data else None
            )
        except InputError as invalid:
            # Its store was taken out of the configuration, or its cluster was; or its data lie
            # where nothing can. The other schedules go on.
            log.error("schedule %s can't be fired: %s", schedule.name, invalid)
            return _FiringPlan(due_at, next_at, "refused")
        if schedule.only_new_data and (
            data_fingerprint is None or data_fingerprint == schedule.data_fingerprint
        ):
            return _FiringPlan(due_at, next_at, "nothing new")
        if schedule.concurrency == "skip" and self._has_unfinished_runs(schedule):
            # Known before a paper is written, from which a rebuild would make the run after all.
            return _FiringPlan(due_at, next_at, "skipped")
        run_id = _make_run_id(resolved.name, schedule, due_at)
        return _FiringPlan(due_at, next_at, "run", submission, resolved, run_id, data_fingerprint)

    def _has_unfinished_runs(self, schedule: Schedule) -> bool:
        with self._database.read() as session:
            return bool(schedules.list_unfinished_runs(session, schedule))

    def _start_run(
        self, session: Session, schedule: Schedule, plan: _FiringPlan
    ) -> tuple[FiringOutcome, str | None]:
        if plan.submission is None or plan.resolved is None or plan.run_id is None:
            return plan.outcome, None
        unfinished = schedules.list_unfinished_runs(session, schedule)
        if schedule.concurrency == "replace":
            for run in unfinished:
                run_flags.request_stop(session, run, Reason.REPLACED)
        runs.add(session, make_new_run(plan.submission, plan.resolved, plan.run_id))
        return ("queued" if unfinished else "run"), plan.run_id

    def _ensure_lease(self) -> Lease | None:
        with self._database.write() as session:
            if self._lease is not None:
                try:
                    self._lease = leases.renew(session, self._lease, seconds=self._lease_s)
                    return self._lease
                except LeaseLost:
                    self._lease = None
            self._lease = leases.acquire(session, LEASE_NAME, self._holder, seconds=self._lease_s)
            return self._lease


def make_submission(schedule: Schedule) -> SubmitRequest:
    """What each of its firings asks for."""
    return SubmitRequest(
        kind=schedule.kind,
        spec=dict(schedule.spec),
        project=schedule.project,
        cluster=schedule.cluster,
        priority=schedule.priority,
    )


def find_first_time(cron: str, time_zone: str, *, offset: float, now: float) -> float | None:
    """When a new schedule fires first."""
    next_time = find_next_time(cron, time_zone, now - offset)
    return None if next_time is None else next_time + offset


def _compute_offset(schedule: Schedule) -> float:
    return compute_jitter_offset(schedule.project, schedule.name, schedule.jitter_s)


def _make_run_id(name: str, schedule: Schedule, due_at: float) -> str:
    """As `new_run_id` makes them, of the moment and the schedule: the same whoever fires it."""
    digest = sha256(f"{schedule.project}/{schedule.name}/{schedule.id}/{due_at}".encode())
    stamp = datetime.fromtimestamp(due_at, UTC)
    return f"{name}-{stamp:%Y%m%d-%H%M%S}-{digest.hexdigest()[:12]}"
