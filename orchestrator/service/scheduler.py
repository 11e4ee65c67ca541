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

from jobs.errors import AlreadyThere, InputError, StoreError
from jobs.store.objects import ObjectStore, open_store
from orchestrator.registry import leases, marks, runs, schedules
from orchestrator.registry.database import Database
from orchestrator.registry.errors import LeaseLost, LostUpdate, Taken, Unknown
from orchestrator.registry.leases import Lease
from orchestrator.registry.lifecycle import Reason
from orchestrator.registry.schedules import Outcome, Schedule
from orchestrator.service.asked import Asked
from orchestrator.service.clock import Clock
from orchestrator.service.cron import latest_until, moments_until, next_after, offset_of
from orchestrator.service.intake import Intake, Submission, new_run, write_paper
from orchestrator.service.new_data import mark_of
from orchestrator.service.observer import Observer

LEASE = "scheduler"
LEASE_S = 30.0
LATE_S = 60.0
"""A moment that is fired so late was missed: nobody was there at its time."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Plan:
    """What one moment comes to, as far as it is known before the transaction."""

    due_at: float
    next_at: float | None
    outcome: Outcome
    asked: Submission | None = None
    found: Asked | None = None
    run_id: str | None = None
    mark: str | None = None


class Scheduler:
    """Fires what is due."""

    def __init__(
        self,
        database: Database,
        intake: Intake,
        clock: Clock,
        *,
        holder: str,
        observer: Observer,
        opened: Callable[[str], ObjectStore] = open_store,
        marked: Callable[[str], str | None] = mark_of,
        lease_s: float = LEASE_S,
    ) -> None:
        self._database, self._intake, self._clock = database, intake, clock
        self._holder, self._observer, self._open, self._mark = holder, observer, opened, marked
        self._lease_s = lease_s
        self._lease: Lease | None = None

    def step(self) -> int:
        """Fires what is due by now; how many moments. Raises DatabaseUnreachable."""
        lease = self._held()
        if lease is None:
            return 0
        with self._database.read() as session:
            due = schedules.due(session, by=self._clock.now())
        return sum(self._fired(schedule, lease) for schedule in due)

    def close(self) -> None:
        """Let another service fire at once."""
        if self._lease is not None:
            with self._database.write() as session:
                leases.release(session, self._lease)
            self._lease = None

    def _fired(self, schedule: Schedule, lease: Lease) -> int:
        """The moments of one schedule up to now; a step that fails is tried again by the next."""
        count = 0
        for due_at in self._moments(schedule):
            try:
                schedule = self._fire(schedule, due_at, lease)
            except (Taken, LostUpdate, Unknown, LeaseLost) as other:
                # Another scheduler, or somebody who changes it: the next look sees how it is.
                log.info("schedule %s: %s", schedule.name, other)
                break
            except StoreError as error:
                log.warning("schedule %s: its store does not answer: %s", schedule.name, error)
                break
            count += 1
        return count

    def _moments(self, schedule: Schedule) -> Sequence[float]:
        """Which of its moments are looked at now: all that were missed, or the latest of them."""
        assert schedule.next_at is not None
        now, offset = self._clock.now(), _offset(schedule)
        first, until = schedule.next_at - offset, now - offset
        if schedule.missed == "all":
            found = moments_until(schedule.cron, schedule.time_zone, first, until)
        else:
            found = [latest_until(schedule.cron, schedule.time_zone, first, until)]
        return [moment + offset for moment in found]

    def _fire(self, schedule: Schedule, due_at: float, lease: Lease) -> Schedule:
        plan = self._planned(schedule, due_at)
        if plan.asked is not None and plan.found is not None and plan.run_id is not None:
            try:
                write_paper(self._open(plan.found.store), plan.asked, plan.found, plan.run_id)
            except AlreadyThere:
                log.info("run %s: its paper was written before", plan.run_id)
        with self._database.write() as session:
            outcome, run = self._started(session, schedule, plan)
            fired = schedules.fire(
                session,
                schedule,
                due_at=due_at,
                next_at=plan.next_at,
                outcome=outcome,
                run=run,
                lease=lease,
                fired_at=self._clock.now(),
                data_mark=plan.mark if run is not None else None,
            )
        self._observer.firings.labels(outcome).inc()
        self._observer.lag.set(max(0.0, self._clock.now() - due_at))
        log.info("schedule %s at %.0f: %s %s", schedule.name, due_at, outcome, run or "")
        return fired

    def _planned(self, schedule: Schedule, due_at: float) -> _Plan:
        offset = _offset(schedule)
        following = next_after(schedule.cron, schedule.time_zone, due_at - offset)
        next_at = None if following is None else following + offset
        late = self._clock.now() - due_at > LATE_S
        if late and schedule.missed == "skip":
            return _Plan(due_at, next_at, "skipped")
        asked = submission_of(schedule)
        try:
            found = self._intake.check(asked)
            mark = self._mark(found.data) if schedule.only_new_data else None
        except InputError as wrong:
            # Its store was taken out of the configuration, or its cluster was; or its data lie
            # where nothing can. The other schedules go on.
            log.error("schedule %s can't be fired: %s", schedule.name, wrong)
            return _Plan(due_at, next_at, "refused")
        if schedule.only_new_data and (mark is None or mark == schedule.data_mark):
            return _Plan(due_at, next_at, "nothing new")
        if schedule.concurrency == "skip" and self._unfinished(schedule):
            # Known before a paper is written, from which a rebuild would make the run after all.
            return _Plan(due_at, next_at, "skipped")
        run_id = _run_id(found.name, schedule, due_at)
        return _Plan(due_at, next_at, "run", asked, found, run_id, mark)

    def _unfinished(self, schedule: Schedule) -> bool:
        with self._database.read() as session:
            return bool(schedules.unfinished(session, schedule))

    def _started(
        self, session: Session, schedule: Schedule, plan: _Plan
    ) -> tuple[Outcome, str | None]:
        if plan.asked is None or plan.found is None or plan.run_id is None:
            return plan.outcome, None
        before = schedules.unfinished(session, schedule)
        if schedule.concurrency == "replace":
            for run in before:
                marks.ask_stop(session, run, Reason.REPLACED)
        runs.add(session, new_run(plan.asked, plan.found, plan.run_id))
        return ("queued" if before else "run"), plan.run_id

    def _held(self) -> Lease | None:
        with self._database.write() as session:
            if self._lease is not None:
                try:
                    self._lease = leases.renew(session, self._lease, seconds=self._lease_s)
                    return self._lease
                except LeaseLost:
                    self._lease = None
            self._lease = leases.acquire(session, LEASE, self._holder, seconds=self._lease_s)
            return self._lease


def submission_of(schedule: Schedule) -> Submission:
    """What each of its firings asks for."""
    return Submission(
        kind=schedule.kind,
        spec=dict(schedule.spec),
        project=schedule.project,
        cluster=schedule.cluster,
        priority=schedule.priority,
    )


def first_moment(cron: str, time_zone: str, *, offset: float, now: float) -> float | None:
    """When a new schedule fires first."""
    found = next_after(cron, time_zone, now - offset)
    return None if found is None else found + offset


def _offset(schedule: Schedule) -> float:
    return offset_of(schedule.project, schedule.name, schedule.jitter_s)


def _run_id(name: str, schedule: Schedule, due_at: float) -> str:
    """As `new_run_id` makes them, of the moment and the schedule: the same whoever fires it."""
    digest = sha256(f"{schedule.project}/{schedule.name}/{schedule.id}/{due_at}".encode())
    stamp = datetime.fromtimestamp(due_at, UTC)
    return f"{name}-{stamp:%Y%m%d-%H%M%S}-{digest.hexdigest()[:12]}"
