"""Fire schedules: each due time once, however many schedulers run.

One transaction writes the firing, whose key is the schedule and the due time, the run that it
starts, and the schedule's next due time. Only the run's request is written before, under an id that
derives from the due time, so that a second scheduler would write the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256

from sqlalchemy.orm import Session

from jobs.errors import AlreadyExists, InputError, StoreError
from jobs.places.places import Places
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.control.bulkheads.bulkhead import Bulkhead, make_bulkhead
from orchestrator.control.bulkheads.item_guard import ItemFailure
from orchestrator.control.clock import Clock
from orchestrator.control.cron import (
    compute_jitter_offset,
    find_latest_time,
    find_next_time,
    list_times_until,
)
from orchestrator.control.intake import Intake, record_stop, record_submission
from orchestrator.control.looking.fingerprints import LookPending
from orchestrator.control.metrics import ServiceMetrics
from orchestrator.control.resolve import SubmitRequest
from orchestrator.control.shares.firing_order import FiringOrder
from orchestrator.registry import projects, run_flags, runs, schedules
from orchestrator.registry.database import Database
from orchestrator.registry.errors import (
    DuplicateKey,
    LeaseLost,
    LostUpdate,
    QuotaExceeded,
    UnknownItem,
)
from orchestrator.registry.leases import Lease, LeaseKeeper
from orchestrator.registry.lifecycle import Reason
from orchestrator.registry.run_request import RunRequest, get_request_key, write_request
from orchestrator.registry.schedules import DueSchedule, FiringOutcome, NewSchedule, Schedule
from orchestrator.registry.tenancy import quarantine, quotas
from orchestrator.registry.tenancy.audit_log import SERVICE, Actor
from orchestrator.registry.tenancy.looks import LookVerdict

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
        fingerprinter: Callable[[str, str, Places | None], str | None],
        lease_s: float = LEASE_S,
        bulkhead: Bulkhead | None = None,
        order: FiringOrder | None = None,
    ) -> None:
        bulkhead = bulkhead or make_bulkhead(database, LEASE_NAME, metrics=metrics, holder=holder)
        self._guard, self._looks = bulkhead.guard, bulkhead.looks
        self._resolved = set[int]()
        """Schedules whose spec this process has resolved without dying."""
        self._database, self._intake, self._clock = database, intake, clock
        self._open, self._fingerprint_data, self._metrics = store_opener, fingerprinter, metrics
        self._order = order or FiringOrder()
        self._lease = LeaseKeeper(database, LEASE_NAME, holder, seconds=lease_s)

    def fire_due(self) -> int:
        """Fire the schedules that are due. Return how many times. Raise DatabaseUnreachable."""
        lease = self._lease.ensure()
        if lease is None:
            return 0
        with self._database.read() as session:
            due = schedules.list_due(session, by=self._clock.now())
        total = 0
        for schedule in self._order.iterate_due(due):
            count = self._fire_guarded(schedule, lease)
            self._order.count_firings(schedule.project, count)
            total += count
        return total

    def close(self) -> None:
        """Release the lease, so that another service can fire at once."""
        self._lease.release()

    def _fire_guarded(self, schedule: DueSchedule, lease: Lease) -> int:
        item = quarantine.name_schedule(schedule.project, schedule.name)
        step = partial(self._fire_schedule, schedule, lease)
        end = partial(self._refuse_firing, schedule, lease)
        return self._guard.run("schedule", item, step, end=end) or 0

    def _refuse_firing(self, schedule: DueSchedule, lease: Lease, failure: ItemFailure) -> None:
        """Refuse a firing at which the service failed, and advance the schedule past it."""
        now = self._clock.now()
        item = quarantine.name_schedule(schedule.project, schedule.name)
        # Its cron expression may be what fails: then it never fires until somebody changes it.
        find_next = partial(self._find_next_firing, schedule, now)
        next_at = self._guard.run("cron", item, find_next, end=lambda failure: None)
        with suppress(UnknownItem), self._database.write() as session:
            # Read again: some of its due times may have fired before.
            current = schedules.get(session, schedule.project, schedule.name)
            if current.next_at is None or current.next_at > now:
                return
            try:
                schedules.fire(
                    session,
                    current,
                    due_at=current.next_at,
                    next_at=next_at,
                    outcome="refused",
                    lease=lease,
                    fired_at=now,
                )
            except DuplicateKey:
                schedules.update_schedule(session, current, next_at=next_at)
        self._metrics.firings.labels("refused").inc()
        log.error("schedule %s is refused: error %s", schedule.name, failure.error_id)

    def _find_next_firing(self, due: DueSchedule, after: float) -> float | None:
        with self._database.read() as session:
            schedule = schedules.get(session, due.project, due.name)
        return find_next_firing(schedule, after)

    def _fire_schedule(self, due: DueSchedule, lease: Lease) -> int:
        """Fire the due times of one schedule; after a failure the next call tries again."""
        with self._database.read() as session:
            schedule = schedules.find_due(session, due, by=self._clock.now())
        if schedule is None:
            return 0
        count = 0
        for due_at in self._list_due_times(schedule):
            try:
                if (plan := self._look_at_firing(schedule, due_at)) is None:
                    break
                schedule = self._fire_once(schedule, due_at, plan, lease)
            except (DuplicateKey, LostUpdate, UnknownItem, LeaseLost) as conflict:
                # Another scheduler fired it, or a user changed it: the next call reads it again.
                log.info("schedule %s: %s", schedule.name, conflict)
                break
            except LookPending:
                break  # the other schedules need not wait for its data
            except StoreError as error:
                log.warning("schedule %s: cannot read or write its store: %s", schedule.name, error)
                break
            count += 1
        return count

    def _list_due_times(self, schedule: Schedule) -> Sequence[float]:
        """List the due times to fire now: the oldest that were missed, or only the latest."""
        assert schedule.next_at is not None
        now, offset = self._clock.now(), _compute_offset(schedule)
        first, until = schedule.next_at - offset, now - offset
        if schedule.missed == "all":
            times = list_times_until(schedule.cron, schedule.time_zone, first, until)
        else:
            times = [find_latest_time(schedule.cron, schedule.time_zone, first, until)]
        return [due_at + offset for due_at in times]

    def _look_at_firing(self, schedule: Schedule, due_at: float) -> _FiringPlan | None:
        """Plan a firing; return None if another process does so, or if it is quarantined now.

        Only the first firing, and looking for new data, can meet something unknown.
        """
        if schedule.id in self._resolved and not schedule.only_new_data:
            return self._plan_firing(schedule, due_at)
        item = quarantine.name_schedule(schedule.project, schedule.name)
        with self._looks.look("schedule", item, schedule.project) as verdict:
            if verdict is not LookVerdict.CLEAR:
                return None
            plan = self._plan_firing(schedule, due_at)
        self._resolved.add(schedule.id)
        return plan

    def _fire_once(
        self, schedule: Schedule, due_at: float, plan: _FiringPlan, lease: Lease
    ) -> Schedule:
        if plan.request is not None:
            try:
                write_request(self._open(plan.request.store), plan.run_id, plan.request)
            except AlreadyExists:
                log.info("run %s: the request was already written", plan.run_id)
        with self._database.write() as session:
            outcome, run = self._start_run(session, schedule, plan, due_at)
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
        if plan.request is not None and run is None:
            # A rebuild would restore a run from the request.
            with suppress(StoreError):
                self._open(plan.request.store).delete(get_request_key(plan.run_id))
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
            fingerprint = self._compute_fingerprint(request) if schedule.only_new_data else None
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
        if self._is_over_quota(schedule, request):
            return _FiringPlan(next_at, "over_quota")
        run_id = _make_run_id(request.name, schedule, due_at)
        return _FiringPlan(next_at, "run", request, run_id, fingerprint)

    def _compute_fingerprint(self, request: RunRequest) -> str | None:
        places = self._intake.find_places(request.project, request.store)
        return self._fingerprint_data(request.project, request.data, places)

    def _has_unfinished_runs(self, schedule: Schedule) -> bool:
        with self._database.read() as session:
            return bool(schedules.list_unfinished_runs(session, schedule))

    def _is_over_quota(self, schedule: Schedule, request: RunRequest) -> bool:
        """Return whether the project may not add the run, before its request is written."""
        try:
            with self._database.read() as session:
                project = projects.get(session, schedule.project)
                quotas.check_run(session, project, schedule.priority, request)
        except QuotaExceeded as quota:
            log.warning("schedule %s does not fire: %s", schedule.name, quota)
            return True
        return False

    def _start_run(
        self, session: Session, schedule: Schedule, plan: _FiringPlan, due_at: float
    ) -> tuple[FiringOutcome, str | None]:
        if plan.request is None:
            return plan.outcome, None
        if _is_known(session, plan.run_id):
            # The firing is newer than a backup that was restored, and the store had its run.
            return plan.outcome, plan.run_id
        maker = Actor(token=schedule.by_token, label=schedule.by_label)
        try:
            # First, because it locks the project: a dispatcher locks in that order, too.
            started = runs.add(session, plan.run_id, plan.request, by=maker)
        except QuotaExceeded as quota:
            log.warning("schedule %s does not fire: %s", schedule.name, quota)
            return "over_quota", None
        record_submission(session, SERVICE, started, schedule=schedule.name, due_at=due_at)
        unfinished = schedules.list_unfinished_runs(session, schedule)
        if schedule.concurrency == "replace":
            for run in unfinished:
                stopping = run_flags.request_stop(session, run, Reason.REPLACED)
                record_stop(session, SERVICE, run, stopping, schedule=schedule.name)
        return ("queued" if unfinished else "run"), plan.run_id


def _is_known(session: Session, run_id: str) -> bool:
    try:
        runs.get(session, run_id)
    except UnknownItem:
        return False
    return True


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
