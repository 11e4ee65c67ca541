"""The lifecycle of a run as one table: which status may follow which, and which need a reason."""

from __future__ import annotations

from enum import StrEnum

from jobs.errors import Fault, InputError
from orchestrator.registry.errors import ForbiddenMove


class Status(StrEnum):
    """The state of a run."""

    PLANNED = "planned"
    """Accepted and queued."""
    SUBMITTED = "submitted"
    """Submitted to a cluster under its id and the number of the attempt."""
    RUNNING = "running"
    PUBLISHING = "publishing"
    """The job succeeded; its adapter has not been read from the store yet."""
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    LOST = "lost"
    """There is evidence that the job no longer exists, and none of how it ended."""


class Reason(StrEnum):
    """The reason why a run ended or was lost. Wording, retries and colours derive from it."""

    CRASHED = "crashed"
    """The training code raised an error; a retry would fail again."""
    REFUSED = "refused"
    """Its input is invalid."""
    OUTSIDE = "outside"
    """A service that it needs did not answer."""
    UNPUBLISHED = "unpublished"
    """Its job succeeded without publishing an adapter."""
    ATTEMPTS = "attempts"
    """It was lost max_attempts times."""
    QUOTA = "quota"
    USER = "user"
    REPLACED = "replaced"
    """A newer firing of its schedule replaced it."""
    JOB_ABSENT = "job_absent"
    """The cluster answers and does not know the job."""
    PREEMPTED = "preempted"
    INTERNAL = "internal"
    """The service itself failed at it; its log has the error under the id in the detail."""
    QUARANTINED = "quarantined"
    """Looking at it ended the service's process."""


S = Status
MOVES: dict[Status, frozenset[Status]] = {
    S.PLANNED: frozenset({S.SUBMITTED, S.FAILED, S.STOPPED}),
    # A job may start and end between two polls, so publishing does not require running.
    S.SUBMITTED: frozenset({S.RUNNING, S.PUBLISHING, S.FAILED, S.STOPPED, S.LOST}),
    S.RUNNING: frozenset({S.PUBLISHING, S.FAILED, S.STOPPED, S.LOST}),
    S.PUBLISHING: frozenset({S.DONE, S.FAILED, S.STOPPED, S.LOST}),
    # Planned: another attempt. Running: the job reappeared. Publishing: its adapter appeared.
    S.LOST: frozenset({S.PLANNED, S.RUNNING, S.PUBLISHING, S.FAILED, S.STOPPED}),
    S.DONE: frozenset(),
    S.FAILED: frozenset(),
    S.STOPPED: frozenset(),
}
"""The allowed moves, by the status they start from."""

FINAL = frozenset(status for status, after in MOVES.items() if not after)
OVER = FINAL | {S.LOST}
"""Statuses in which no job of the run is known to be alive."""

REASONS: dict[Status, frozenset[Reason]] = {
    S.FAILED: frozenset(
        {
            Reason.CRASHED,
            Reason.REFUSED,
            Reason.OUTSIDE,
            Reason.UNPUBLISHED,
            Reason.ATTEMPTS,
            Reason.QUOTA,
            Reason.INTERNAL,
            Reason.QUARANTINED,
        }
    ),
    S.STOPPED: frozenset({Reason.USER, Reason.REPLACED}),
    S.LOST: frozenset({Reason.JOB_ABSENT, Reason.PREEMPTED}),
}
"""The reasons that a status requires; other statuses have none."""


def check_move(status: Status, target: Status, reason: Reason | None) -> None:
    """Check a move. Raise ForbiddenMove, or InputError if `target` does not take the reason."""
    if target not in MOVES[status]:
        allowed = tuple(sorted(after.value for after in MOVES[status]))
        raise ForbiddenMove(status.value, target.value, allowed)
    reasons = REASONS.get(target, frozenset())
    if (reason is None) != (not reasons) or (reason and reason not in reasons):
        names = ", ".join(sorted(allowed.value for allowed in reasons)) or "none"
        problem = f"{reason.value if reason else 'none'} is not a reason to be {target.value}"
        raise InputError([Fault("reason", problem, f"Use {names}.")])
