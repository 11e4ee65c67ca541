"""Decisions as values: given what was seen of a run, what to do next. No side effects."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from orchestrator.cluster.door import Seen, Sight
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.values import Run

REFUSED_CODE, OUTSIDE_CODE = 2, 3
"""The exit codes of our jobs: the input is wrong, the outside world does not answer."""
KILLED = 128
"""Codes above it, and negative ones, are a signal's: a machine's or its kernel's doing."""
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 600.0


class Act(StrEnum):
    """What to do with a run."""

    WAIT = "wait"
    SUBMIT = "submit"
    """The same attempt again: the cluster never said that it has it."""
    MOVE = "move"
    FINISH = "finish"
    """Its adapter is there, or it had nothing to make: to its end by way of publishing."""
    END_JOB = "end job"
    """Ask the cluster to stop it."""


@dataclass(frozen=True)
class Told:
    """What the store tells of a run whose job is over."""

    adapter: str | None = None
    nothing_new: bool = False
    why: str = ""
    """Its own words where it failed."""
    alive: bool = False
    """Its lease is beaten still, by this attempt."""

    @property
    def finished(self) -> bool:
        """Whether all is there that the run was to make."""
        return self.adapter is not None or self.nothing_new


@dataclass(frozen=True)
class Next:
    """The decision."""

    act: Act
    to: Status | None = None
    reason: Reason | None = None
    detail: str = ""


WAIT = Next(Act.WAIT)


def decide(run: Run, sight: Sight, told: Told, *, acknowledged: bool, max_attempts: int) -> Next:
    """What follows for a run at work. `told` counts only where the job is over or absent."""
    if sight.seen in (Seen.PENDING, Seen.RUNNING):
        return _alive(run, sight)
    if run.status is Status.LOST and sight.seen is not Seen.SUCCEEDED:
        return _after_loss(run, told, max_attempts)
    if told.finished:
        return Next(Act.FINISH)
    if sight.seen is Seen.SUCCEEDED:
        detail = "the job ended well, and left no adapter in the store"
        return Next(Act.MOVE, Status.FAILED, Reason.UNPUBLISHED, detail)
    if run.stop is not None:
        return Next(Act.MOVE, Status.STOPPED, Reason(run.stop))
    if sight.seen is Seen.STOPPED:
        return Next(Act.MOVE, Status.STOPPED, Reason.USER, "stopped on the cluster")
    if sight.seen is Seen.FAILED:
        return _failed(run, sight, told, max_attempts)
    return _absent(run, told, acknowledged)


def wait_s(attempt: int) -> float:
    """Seconds before the attempt after this one: doubling, so that a sick cluster has its rest."""
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (attempt - 1))


def _alive(run: Run, sight: Sight) -> Next:
    if run.stop is not None:
        return Next(Act.END_JOB)
    if sight.seen is Seen.RUNNING and run.status in (Status.SUBMITTED, Status.LOST):
        return Next(Act.MOVE, Status.RUNNING)
    return WAIT


def _failed(run: Run, sight: Sight, told: Told, max_attempts: int) -> Next:
    code, why = sight.exit_code, told.why or sight.message
    if code is None or code < 0 or code > KILLED:
        # No code, or a signal's: the driver did not end of itself.
        return Next(Act.MOVE, Status.LOST, Reason.GONE, why)
    if code == REFUSED_CODE:
        return Next(Act.MOVE, Status.FAILED, Reason.REFUSED, why)
    if code == OUTSIDE_CODE:
        if run.attempt < max_attempts:
            return Next(Act.MOVE, Status.LOST, Reason.GONE, why)
        return Next(Act.MOVE, Status.FAILED, Reason.OUTSIDE, why)
    # A crash repeats itself; only a lost machine is worth another attempt.
    return Next(Act.MOVE, Status.FAILED, Reason.CRASHED, why)


def _absent(run: Run, told: Told, acknowledged: bool) -> Next:
    if not acknowledged:
        return Next(Act.SUBMIT)
    if told.alive:
        return WAIT
    detail = "the cluster answers, and does not know the job"
    return Next(Act.MOVE, Status.LOST, Reason.GONE, detail)


def _after_loss(run: Run, told: Told, max_attempts: int) -> Next:
    if told.finished:
        return Next(Act.FINISH)
    if run.stop is not None:
        return Next(Act.MOVE, Status.STOPPED, Reason(run.stop))
    if told.alive:
        return WAIT
    if run.attempt >= max_attempts:
        detail = f"lost {run.attempt} times: {run.detail}"
        return Next(Act.MOVE, Status.FAILED, Reason.ATTEMPTS, detail)
    return Next(Act.MOVE, Status.PLANNED)
