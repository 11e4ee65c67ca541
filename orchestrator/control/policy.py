"""Decisions as values: given what was seen of a run, what to do next. No side effects."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from orchestrator.cluster.base import JobState, JobStatus
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.values import Run

INVALID_INPUT_CODE, UNREACHABLE_CODE = 2, 3
"""The exit codes of our jobs: the input is wrong, the outside world does not answer."""
SIGNAL_CODE_BASE = 128
"""Codes above it, and negative ones, are a signal's: a machine's or its kernel's doing."""
MIN_RETRY_WAIT_S, MAX_RETRY_WAIT_S = 5.0, 600.0


class Action(StrEnum):
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
class RunOutcome:
    """What the store tells of a run whose job is over."""

    adapter: str | None = None
    no_new_data: bool = False
    message: str = ""
    """Its own words where it failed."""
    alive: bool = False
    """Its lease is beaten still, by this attempt."""

    @property
    def is_finished(self) -> bool:
        """Whether all is there that the run was to make."""
        return self.adapter is not None or self.no_new_data


@dataclass(frozen=True)
class Decision:
    """The decision."""

    action: Action
    target: Status | None = None
    reason: Reason | None = None
    detail: str = ""


WAIT = Decision(Action.WAIT)


def decide(
    run: Run, job: JobStatus, outcome: RunOutcome, *, acknowledged: bool, max_attempts: int
) -> Decision:
    """What follows for a run at work. `told` counts only where the job is over or absent."""
    if job.state in (JobState.PENDING, JobState.RUNNING):
        return _decide_alive(run, job)
    if run.status is Status.LOST and job.state is not JobState.SUCCEEDED:
        return _decide_after_loss(run, outcome, max_attempts)
    if outcome.is_finished:
        return Decision(Action.FINISH)
    if job.state is JobState.SUCCEEDED:
        detail = "the job ended well, and left no adapter in the store"
        return Decision(Action.MOVE, Status.FAILED, Reason.UNPUBLISHED, detail)
    if run.stop is not None:
        return Decision(Action.MOVE, Status.STOPPED, Reason(run.stop))
    if job.state is JobState.STOPPED:
        return Decision(Action.MOVE, Status.STOPPED, Reason.USER, "stopped on the cluster")
    if job.state is JobState.FAILED:
        return _decide_failed(run, job, outcome, max_attempts)
    return _decide_absent(run, outcome, acknowledged)


def compute_retry_wait_s(attempt: int) -> float:
    """Seconds before the attempt after this one: doubling, so that a sick cluster has its rest."""
    return min(MAX_RETRY_WAIT_S, MIN_RETRY_WAIT_S * 2.0 ** (attempt - 1))


def _decide_alive(run: Run, job: JobStatus) -> Decision:
    if run.stop is not None:
        return Decision(Action.END_JOB)
    if job.state is JobState.RUNNING and run.status in (Status.SUBMITTED, Status.LOST):
        return Decision(Action.MOVE, Status.RUNNING)
    return WAIT


def _decide_failed(run: Run, job: JobStatus, outcome: RunOutcome, max_attempts: int) -> Decision:
    code, message = job.exit_code, outcome.message or job.message
    if code is None or code < 0 or code > SIGNAL_CODE_BASE:
        # No code, or a signal's: the driver did not end of itself.
        return Decision(Action.MOVE, Status.LOST, Reason.JOB_ABSENT, message)
    if code == INVALID_INPUT_CODE:
        return Decision(Action.MOVE, Status.FAILED, Reason.REFUSED, message)
    if code == UNREACHABLE_CODE:
        if run.attempt < max_attempts:
            return Decision(Action.MOVE, Status.LOST, Reason.JOB_ABSENT, message)
        return Decision(Action.MOVE, Status.FAILED, Reason.OUTSIDE, message)
    # A crash repeats itself; only a lost machine is worth another attempt.
    return Decision(Action.MOVE, Status.FAILED, Reason.CRASHED, message)


def _decide_absent(run: Run, outcome: RunOutcome, acknowledged: bool) -> Decision:
    if not acknowledged:
        return Decision(Action.SUBMIT)
    if outcome.alive:
        return WAIT
    detail = "the cluster answers, and does not know the job"
    return Decision(Action.MOVE, Status.LOST, Reason.JOB_ABSENT, detail)


def _decide_after_loss(run: Run, outcome: RunOutcome, max_attempts: int) -> Decision:
    if outcome.is_finished:
        return Decision(Action.FINISH)
    if run.stop is not None:
        return Decision(Action.MOVE, Status.STOPPED, Reason(run.stop))
    if outcome.alive:
        return WAIT
    if run.attempt >= max_attempts:
        detail = f"lost {run.attempt} times: {run.detail}"
        return Decision(Action.MOVE, Status.FAILED, Reason.ATTEMPTS, detail)
    return Decision(Action.MOVE, Status.PLANNED)
