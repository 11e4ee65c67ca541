"""The lifecycle of a run as one table: which status may follow which, and which need a reason."""

from __future__ import annotations

from enum import StrEnum

from jobs.errors import Fault, InputError
from orchestrator.registry.errors import ForbiddenMove


class Status(StrEnum):
    """Where a run is."""

    PLANNED = "planned"
    """Accepted; waits in the queue."""
    SUBMITTED = "submitted"
    """Handed to a cluster, under its id and the attempt's number."""
    RUNNING = "running"
    PUBLISHING = "publishing"
    """The job ended well; its adapter is not yet seen in the store."""
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    LOST = "lost"
    """There is evidence that the job is gone, and none of how it ended."""


class Reason(StrEnum):
    """Why a run did not go on. Wording, retries and colours follow from it."""

    CRASHED = "crashed"
    """An error of its code: it repeats."""
    REFUSED = "refused"
    """Its input is wrong."""
    OUTSIDE = "outside"
    """Something that it needs did not answer."""
    UNPUBLISHED = "unpublished"
    """It ended well and left no adapter."""
    ATTEMPTS = "attempts"
    """Lost more often than it may be."""
    QUOTA = "quota"
    USER = "user"
    REPLACED = "replaced"
    """By a newer firing of its schedule."""
    JOB_ABSENT = "job_absent"
    """The cluster answers, and does not know the job."""
    PREEMPTED = "preempted"


S = Status
MOVES: dict[Status, frozenset[Status]] = {
    S.PLANNED: frozenset({S.SUBMITTED, S.FAILED, S.STOPPED}),
    # A job may start and end between two looks: publishing needs no sighting of it running.
    S.SUBMITTED: frozenset({S.RUNNING, S.PUBLISHING, S.FAILED, S.STOPPED, S.LOST}),
    S.RUNNING: frozenset({S.PUBLISHING, S.FAILED, S.STOPPED, S.LOST}),
    S.PUBLISHING: frozenset({S.DONE, S.FAILED, S.STOPPED, S.LOST}),
    # Planned: another attempt. Running: the job turned up again. Publishing: its adapter did.
    S.LOST: frozenset({S.PLANNED, S.RUNNING, S.PUBLISHING, S.FAILED, S.STOPPED}),
    S.DONE: frozenset(),
    S.FAILED: frozenset(),
    S.STOPPED: frozenset(),
}
"""Every move that there is."""

FINAL = frozenset(status for status, after in MOVES.items() if not after)
OVER = FINAL | {S.LOST}
"""No job of the run is known to be alive."""

REASONS: dict[Status, frozenset[Reason]] = {
    S.FAILED: frozenset(
        {
            Reason.CRASHED,
            Reason.REFUSED,
            Reason.OUTSIDE,
            Reason.UNPUBLISHED,
            Reason.ATTEMPTS,
            Reason.QUOTA,
        }
    ),
    S.STOPPED: frozenset({Reason.USER, Reason.REPLACED}),
    S.LOST: frozenset({Reason.JOB_ABSENT, Reason.PREEMPTED}),
}
"""What may have led there; statuses that are not here have no reason."""


def check_move(status: Status, target: Status, reason: Reason | None) -> None:
    """Raises ForbiddenMove, or InputError where the reason is none for `to`."""
    if target not in MOVES[status]:
        allowed = tuple(sorted(after.value for after in MOVES[status]))
        raise ForbiddenMove(status.value, target.value, allowed)
    allowed_reasons = REASONS.get(target, frozenset())
    if (reason is None) != (not allowed_reasons) or (reason and reason not in allowed_reasons):
        names = (
            ", ".join(sorted(allowed_reason.value for allowed_reason in allowed_reasons)) or "none"
        )
        problem = f"{reason.value if reason else 'nothing'} is no reason to be {target.value}"
        raise InputError([Fault("reason", problem, f"Give {names}.")])
