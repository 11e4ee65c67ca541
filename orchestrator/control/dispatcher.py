"""Submit planned runs to their cluster, as many as may run now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from orchestrator.control.follower import ClusterRules
from orchestrator.control.queue import ProjectUsage, QueueDecision, UsageTracker, plan_queue
from orchestrator.registry import run_flags, runs, usage
from orchestrator.registry.database import Database
from orchestrator.registry.leases import Lease
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.values import Run

WAITING_FOR_PREVIOUS = "waiting for this schedule's previous run to finish"
PREVIOUS_JOB_ENDING = "waiting for the job of its previous attempt to end on the cluster"


@dataclass(frozen=True)
class PlacementResult:
    """The reasons why a run cannot be placed on the cluster; empty if it can."""

    rejection: str = ""
    wait_reason: str = ""


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
    ) -> None:
        self._database, self._cluster, self._rules = database, cluster, rules
        self._check_placement = check_placement
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
            submit(run, lease)

    def _select_runs(self, live_attempts: Mapping[str, int], lease: Lease) -> list[Run]:
        with self._database.read() as session:
            runs_to_stop = usage.list_runs_to_stop(session, self._cluster)
            decisions = self._plan_queue(session, live_attempts)
        if not decisions and not runs_to_stop:
            return []
        # Outside of a transaction, because it may read the headers of a model.
        placements = self._check_placements(decisions)
        with self._database.write() as session:
            for run in usage.list_runs_to_stop(session, self._cluster):
                reason = Reason(run.stop or Reason.USER)
                runs.move(session, run, Status.STOPPED, reason=reason, lease=lease)
            usage.lock_projects(session)
            selected = (
                _apply_decision(
                    session, decision, placements.get(decision.run.id, FITS).rejection, lease
                )
                for decision in self._plan_queue(session, live_attempts)
                # A run that was added meanwhile is checked and submitted by the next pass.
                if not _can_start_now(decision) or decision.run.id in placements
            )
            return [run for run in selected if run is not None]

    def _check_placements(self, decisions: Sequence[QueueDecision]) -> dict[str, PlacementResult]:
        """Check the runs that are next, and those that did not fit before."""
        candidates = [
            decision.run
            for decision in decisions
            if _can_start_now(decision) or decision.run.id in self._shortages
        ]
        placements = {run.id: self._check_placement(run) for run in candidates}
        self._shortages = {
            run_id: placement.wait_reason
            for run_id, placement in placements.items()
            if placement.wait_reason
        }
        return placements

    def _plan_queue(
        self, session: Session, live_attempts: Mapping[str, int]
    ) -> list[QueueDecision]:
        tracker = _make_tracker(usage.count_active(session), usage.count_tokens_today(session))
        blocked = dict.fromkeys(
            usage.find_runs_behind_firing(session, self._cluster), WAITING_FOR_PREVIOUS
        )
        free_slots = self._rules.max_runs - usage.count_busy_runs(session, self._cluster)
        planned = [run for run in usage.list_ready_runs(session, self._cluster) if run.stop is None]
        for run in planned:
            if live_attempts.get(run.id, run.attempt + 1) != run.attempt + 1:
                blocked[run.id] = PREVIOUS_JOB_ENDING
        blocked |= self._shortages
        return list(plan_queue(planned, tracker, usage.load_projects(session), free_slots, blocked))


def _can_start_now(decision: QueueDecision) -> bool:
    return not decision.wait_reason and not decision.rejection


def _apply_decision(
    session: Session, decision: QueueDecision, rejection: str, lease: Lease
) -> Run | None:
    """Begin the run's next attempt and return it; return None if it waits or was rejected."""
    run = decision.run
    if decision.rejection or rejection:
        reason = Reason.QUOTA if decision.rejection else Reason.REFUSED
        detail = decision.rejection or rejection
        runs.move(session, run, Status.FAILED, reason=reason, detail=detail, lease=lease)
        return None
    run_flags.set_wait_reason(session, run, decision.wait_reason)
    return None if decision.wait_reason else runs.move(session, run, Status.SUBMITTED, lease=lease)


def _make_tracker(active: dict[str, tuple[int, int]], tokens: dict[str, int]) -> UsageTracker:
    names = {*active, *tokens}
    return UsageTracker(
        {name: ProjectUsage(*active.get(name, (0, 0)), tokens.get(name, 0)) for name in names}
    )
