"""The queue's end: planned runs are handed to their cluster, as many as may run now."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.orm import Session

from orchestrator.registry import marks, runs, usage
from orchestrator.registry.database import Database
from orchestrator.registry.leases import Lease
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.values import Run
from orchestrator.service.follower import Rules
from orchestrator.service.queue import Books, Room, Turn, Usage, turns

BEHIND = "its schedule's run before it is not over"

Unfit = Callable[[Run], str]
"""Why a run can't be placed on the cluster at all; empty where it can."""


class Dispatcher:
    """Gives out turns on one cluster."""

    def __init__(
        self, database: Database, cluster: str, rules: Rules, *, unfit: Unfit = lambda run: ""
    ) -> None:
        self._database, self._cluster, self._rules, self._unfit = database, cluster, rules, unfit

    def dispatch(self, busy: int, lease: Lease, submit: Callable[[Run], None]) -> None:
        """Submits what may run now; `busy` jobs of ours are there. Raises ClusterUnreachable.

        What is counted and what is moved is one transaction; it ends before the cluster is asked.
        """
        for run in self._taken(busy, lease):
            submit(run)

    def _taken(self, busy: int, lease: Lease) -> list[Run]:
        with self._database.read() as session:
            waiting = usage.ready(session, self._cluster)
        if not waiting:
            return []
        # Looked at outside of the transaction: it may read a model's headers.
        unfit = {run.id: why for run in waiting if (why := self._unfit(run))}
        with self._database.write() as session:
            projects = usage.lock_projects(session)
            books = _books(usage.at_once(session), usage.tokens_today(session))
            held = dict.fromkeys(usage.behind_another_firing(session, self._cluster), BEHIND)
            fresh = usage.ready(session, self._cluster)
            room = Room(self._rules.max_runs - busy)
            taken = []
            for turn in turns(fresh, books, projects, room, held):
                run = _served(session, turn, unfit.get(turn.run.id, ""), lease)
                if run is not None:
                    taken.append(run)
            return taken


def _served(session: Session, turn: Turn, unfit: str, lease: Lease) -> Run | None:
    """The run with its next attempt begun, or None where it waits or is over."""
    run = turn.run
    if run.stop is not None:
        runs.move(session, run, Status.STOPPED, reason=Reason(run.stop), lease=lease)
        return None
    if turn.never or unfit:
        reason = Reason.QUOTA if turn.never else Reason.REFUSED
        detail = turn.never or unfit
        runs.move(session, run, Status.FAILED, reason=reason, detail=detail, lease=lease)
        return None
    marks.waits(session, run, turn.waits)
    return None if turn.waits else runs.move(session, run, Status.SUBMITTED, lease=lease)


def _books(at_once: dict[str, tuple[int, int]], tokens: dict[str, int]) -> Books:
    names = {*at_once, *tokens}
    return Books({name: Usage(*at_once.get(name, (0, 0)), tokens.get(name, 0)) for name in names})
