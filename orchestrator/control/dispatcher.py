"""Submit planned runs to their cluster, as many as may run now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy.orm import Session

from orchestrator.control.bulkheads.bulkhead import Bulkhead, make_bulkhead
from orchestrator.control.bulkheads.item_guard import ItemFailure
from orchestrator.control.follower import ClusterRules
from orchestrator.control.orphans import FOREIGN_ATTEMPT
from orchestrator.control.queue import QueueDecision, UsageTracker, plan_queue
from orchestrator.registry import run_flags, runs, usage
from orchestrator.registry.database import Database
from orchestrator.registry.leases import Lease
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.tenancy import quarantine
from orchestrator.registry.tenancy.looks import LookVerdict
from orchestrator.registry.values import Run

WAITING_FOR_PREVIOUS = "waiting for this schedule's previous run to finish"
BEING_LOOKED_AT = "waiting for another process of the service, which looks at it"
FAILED_BEFORE = "waiting for the next try: the service failed at it"
PREVIOUS_JOB_ENDING = "waiting for the job of its previous attempt to end on the cluster"
FOREIGN_JOB_RUNNING = "waiting for a job of this run to end that another registry submitted"


@dataclass(frozen=True)
class PlacementResult:
    """The reasons why a run cannot be placed on the cluster; empty if it can."""

    rejection: str = ""
    wait_reason: str = ""
    reason: Reason = Reason.REFUSED
    """Why a rejected run fails."""


FITS = PlacementResult()
PlacementCheck = Callable[[Run], PlacementResult]


class Dispatcher:
    """Dispatches the queue of one cluster."""

    def __init__(
        self,
        database: Database,
        cluster: str,
        rules: ClusterRules,
        *,
        check_placement: PlacementCheck = lambda run: FITS,
        is_checked: Callable[[Run], bool] = lambda run: False,
        bulkhead: Bulkhead | None = None,
    ) -> None:
        """`is_checked` tells whether the result of a run's check is known without looking."""
        self._database, self._cluster, self._rules = database, cluster, rules
        self._check_placement, self._is_checked = check_placement, is_checked
        bulkhead = bulkhead or make_bulkhead(database, f"dispatcher.{cluster}")
        self._guard, self._looks = bulkhead.guard, bulkhead.looks
        self._broken: list[tuple[Run, ItemFailure]] = []
        """Runs whose rows have values that nobody can compute with."""
        self._shortages: dict[str, str] = {}
        """Wait reasons of the runs that do not fit the cluster at its current size."""

    def dispatch(
        self, live_attempts: Mapping[str, int], lease: Lease, submit: Callable[[Run, Lease], None]
    ) -> None:
        """Submit the runs that may start now. Raise ClusterUnreachable.

        `live_attempts` are the runs with a job on the cluster, and its attempt. That job must end
        before another is submitted, unless it is of the next attempt already, as after a backup
        was restored. Counting and moving is one transaction, committed before jobs are submitted.
        """
        for run in self._select_runs(live_attempts, lease):
            # A run that was submitted is active: the follower tries again, or ends it.
            self._guard.run("run", run.id, partial(submit, run, lease), end=lambda failure: None)

    def _select_runs(self, live_attempts: Mapping[str, int], lease: Lease) -> list[Run]:
        with self._database.read() as session:
            runs_to_stop = usage.list_runs_to_stop(session, self._cluster)
            decisions = self._plan_queue(session, live_attempts)
            quarantined = quarantine.find_reasons(session, "run")
        while self._broken:
            self._fail_run(*self._broken.pop(), lease)
        if not decisions and not runs_to_stop:
            return []
        # Outside of a transaction, because it may read the headers of a model.
        placements = self._check_placements(decisions, quarantined)
        selected: list[Run] = []
        failed: list[tuple[Run, ItemFailure]] = []
        with self._database.write() as session:
            # Before any run is written: whoever adds a run locks its project first, too.
            usage.lock_projects(session)
            for run in usage.list_runs_to_stop(session, self._cluster):
                self._move_run(session, run, partial(_stop_run, session, run, lease), failed)
            for decision in self._plan_queue(session, live_attempts):
                run = decision.run
                # A run that was added meanwhile is checked and submitted by the next pass.
                if _can_start_now(decision) and run.id not in placements:
                    continue
                placement = placements.get(run.id, FITS)
                if decision.wait_reason == run.wait_reason != "" and not placement.rejection:
                    continue
                step = partial(_apply_decision, session, decision, placement, lease)
                if (moved := self._move_run(session, run, step, failed)) is not None:
                    selected.append(moved)
        for run, failure in failed:
            self._fail_run(run, failure, lease)
        return selected

    def _move_run(
        self,
        session: Session,
        run: Run,
        step: Callable[[], Run | None],
        failed: list[tuple[Run, ItemFailure]],
    ) -> Run | None:
        """Take a step in a savepoint: the failure of a run leaves the others their moves."""

        def step_in_savepoint() -> Run | None:
            with session.begin_nested():
                return step()

        return self._guard.run(
            "move", run.id, step_in_savepoint, end=lambda failure: failed.append((run, failure))
        )

    def _fail_run(self, run: Run, failure: ItemFailure, lease: Lease) -> None:
        def end() -> None:
            with self._database.write() as session:
                current = runs.get(session, run.id)
                if current.status is Status.PLANNED:
                    reason, detail = Reason.INTERNAL, failure.detail
                    runs.move(
                        session, current, Status.FAILED, reason=reason, detail=detail, lease=lease
                    )

        self._guard.run("end", run.id, end, end=lambda failure: None)

    def _is_sound(self, run: Run) -> bool:
        def end(failure: ItemFailure) -> None:
            self._broken.append((run, failure))

        return self._guard.run("row", run.id, partial(_check_numbers, run), end=end) is True

    def _check_placements(
        self, decisions: Sequence[QueueDecision], quarantined: Mapping[str, str]
    ) -> dict[str, PlacementResult]:
        """Check the runs that are next, those that did not fit before, and the quarantined."""
        candidates = [
            decision.run
            for decision in decisions
            if _can_start_now(decision)
            or decision.run.id in self._shortages
            or decision.run.id in quarantined
        ]
        placements = {run.id: self._check_run(run, quarantined) for run in candidates}
        self._shortages = {
            run_id: placement.wait_reason
            for run_id, placement in placements.items()
            if placement.wait_reason
        }
        return placements

    def _check_run(self, run: Run, quarantined: Mapping[str, str]) -> PlacementResult:
        if run.id in quarantined:
            return PlacementResult(rejection=quarantined[run.id], reason=Reason.QUARANTINED)
        failures: list[ItemFailure] = []
        result = self._guard.run("run", run.id, partial(self._look_at, run), end=failures.append)
        if failures:
            return PlacementResult(rejection=failures[0].detail, reason=Reason.INTERNAL)
        return result or PlacementResult(wait_reason=FAILED_BEFORE)

    def _look_at(self, run: Run) -> PlacementResult:
        if self._is_checked(run):
            return self._check_placement(run)
        with self._looks.look("run", run.id, run.project) as verdict:
            if verdict is not LookVerdict.CLEAR:
                # The next pass finds it in quarantine, or free.
                return PlacementResult(wait_reason=BEING_LOOKED_AT)
            return self._check_placement(run)

    def _plan_queue(
        self, session: Session, live_attempts: Mapping[str, int]
    ) -> list[QueueDecision]:
        tracker = UsageTracker(usage.measure_usage(session))
        blocked = dict.fromkeys(
            usage.find_runs_behind_firing(session, self._cluster), WAITING_FOR_PREVIOUS
        )
        free_slots = self._rules.max_runs - usage.count_busy_runs(session, self._cluster)
        ready = usage.list_ready_runs(session, self._cluster)
        planned = [run for run in ready if run.stop is None and self._is_sound(run)]
        for run in planned:
            if live_attempts.get(run.id, run.attempt + 1) != run.attempt + 1:
                is_foreign = live_attempts[run.id] == FOREIGN_ATTEMPT
                blocked[run.id] = FOREIGN_JOB_RUNNING if is_foreign else PREVIOUS_JOB_ENDING
        blocked |= self._shortages
        return list(plan_queue(planned, tracker, usage.load_projects(session), free_slots, blocked))


def _check_numbers(run: Run) -> bool:
    """Raise TypeError if a number is none: SQLite stores any value in any column."""
    compute_with = (run.priority, run.workers, run.attempt, run.revision, run.tokens or 0)
    if not all(isinstance(number, int) for number in compute_with):
        raise TypeError(f"run {run.id} has a number that is none")
    float(run.created_at)
    return True


def _can_start_now(decision: QueueDecision) -> bool:
    return not decision.wait_reason and not decision.rejection


def _stop_run(session: Session, run: Run, lease: Lease) -> None:
    reason = Reason(run.stop or Reason.USER)
    runs.move(session, run, Status.STOPPED, reason=reason, lease=lease)


def _apply_decision(
    session: Session, decision: QueueDecision, placement: PlacementResult, lease: Lease
) -> Run | None:
    """Begin the run's next attempt and return it; return None if it waits or was rejected."""
    run = decision.run
    if decision.rejection or placement.rejection:
        reason = Reason.QUOTA if decision.rejection else placement.reason
        detail = decision.rejection or placement.rejection
        runs.move(session, run, Status.FAILED, reason=reason, detail=detail, lease=lease)
        return None
    run_flags.set_wait_reason(session, run, decision.wait_reason)
    return None if decision.wait_reason else runs.move(session, run, Status.SUBMITTED, lease=lease)
