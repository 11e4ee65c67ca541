"""The queue's end: planned runs are handed to their cluster, as many as may run now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from orchestrator.registry import marks, runs, usage
from orchestrator.registry.database import Database
from orchestrator.registry.leases import Lease
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.values import Run
from orchestrator.service.follower import Rules
from orchestrator.service.queue import Books, Turn, Usage, turns

BEHIND = "its schedule's run before it is not over"
STILL_THERE = "its job before is still ending on the cluster"


@dataclass(frozen=True)
class Verdict:
    """Why a run can't be placed on the cluster; empty where it can."""

    never: str = ""
    waits: str = ""


FITS = Verdict()
Fitting = Callable[[Run], Verdict]


class Dispatcher:
    """Gives out turns on one cluster."""

    def __init__(
        self, database: Database, cluster: str, rules: Rules, *, fits: Fitting = lambda run: FITS
    ) -> None:
        self._database, self._cluster, self._rules, self._fits = database, cluster, rules, fits
        self._misfits: dict[str, str] = {}
        """Why runs wait that don't fit the cluster as it is now."""

    def dispatch(
        self, alive: Mapping[str, int], lease: Lease, submit: Callable[[Run, Lease], None]
    ) -> None:
        """Submits what may run now. Raises ClusterUnreachable.

        `alive`: runs that have a job on the cluster, and of which attempt. It must end before they
        get another, unless it is their next attempt already, as after a backup was restored.
        What is counted and what is moved is one transaction; it ends before the cluster is asked.
        """
        for run in self._taken(alive, lease):
            submit(run, lease)

    def _taken(self, alive: Mapping[str, int], lease: Lease) -> list[Run]:
        with self._database.read() as session:
            unwanted = usage.unwanted(session, self._cluster)
            looked = self._turns(session, alive)
        if not looked and not unwanted:
            return []
        # Looked at outside of the transaction: it may read a model's headers.
        judged = self._judged(looked)
        with self._database.write() as session:
            for run in usage.unwanted(session, self._cluster):
                reason = Reason(run.stop or Reason.USER)
                runs.move(session, run, Status.STOPPED, reason=reason, lease=lease)
            usage.lock_projects(session)
            served = (
                _served(session, turn, judged.get(turn.run.id, FITS).never, lease)
                for turn in self._turns(session, alive)
                # One that came meanwhile is judged, and served, by the next look.
                if not _is_now(turn) or turn.run.id in judged
            )
            return [run for run in served if run is not None]

    def _judged(self, looked: Sequence[Turn]) -> dict[str, Verdict]:
        """Whether those that are next would fit, and whether those do by now that did not."""
        asked = [turn.run for turn in looked if _is_now(turn) or turn.run.id in self._misfits]
        judged = {run.id: self._fits(run) for run in asked}
        self._misfits = {id: verdict.waits for id, verdict in judged.items() if verdict.waits}
        return judged

    def _turns(self, session: Session, alive: Mapping[str, int]) -> list[Turn]:
        books = _books(usage.at_once(session), usage.tokens_today(session))
        held = dict.fromkeys(usage.behind_another_firing(session, self._cluster), BEHIND)
        room = self._rules.max_runs - usage.busy(session, self._cluster)
        planned = [run for run in usage.ready(session, self._cluster) if run.stop is None]
        for run in planned:
            if alive.get(run.id, run.attempt + 1) != run.attempt + 1:
                held[run.id] = STILL_THERE
        held |= self._misfits
        return list(turns(planned, books, usage.projects(session), room, held))


def _is_now(turn: Turn) -> bool:
    return not turn.waits and not turn.never


def _served(session: Session, turn: Turn, unfit: str, lease: Lease) -> Run | None:
    """The run with its next attempt begun, or None where it waits or is over."""
    run = turn.run
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
