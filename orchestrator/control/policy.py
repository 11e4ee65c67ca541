"""Decide what to do with a run, given the state of its job and its outcome. No side effects."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from orchestrator.cluster.base import JobState, JobStatus
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.values import Run

INVALID_INPUT_CODE, UNREACHABLE_CODE = 2, 3
"""Exit codes of jobs: invalid input, and an external service that does not answer."""
SIGNAL_CODE_BASE = 128
"""Codes above it, and negative ones, mean a signal: the machine or the kernel killed the job."""
MIN_RETRY_WAIT_S, MAX_RETRY_WAIT_S = 5.0, 600.0


class Action(StrEnum):
    """An action on a run."""

    WAIT = "wait"
    SUBMIT = "submit"
    """Submit the same attempt again: the cluster never acknowledged it."""
    MOVE = "move"
    FINISH = "finish"
    """Move it to done via publishing: its adapter exists, or there was no new data."""
    END_JOB = "end_job"
    """Stop its job on the cluster."""


@dataclass(frozen=True)
class RunOutcome:
    """The outcome of a run whose job has ended, as the store tells it."""

    adapter: str | None = None
    no_new_data: bool = False
    message: str = ""
    """The error message of the run, if it failed."""
    alive: bool = False
    """Whether this attempt still sends heartbeats."""

    @property
    def is_finished(self) -> bool:
        """Return whether the run has produced everything that it should."""
        return self.adapter is not None or self.no_new_data


@dataclass(frozen=True)
class Decision:
    """A decision about a run; a move has a target, a reason and a detail."""

    action: Action
    target: Status | None = None
    reason: Reason | None = None
    detail: str = ""


WAIT = Decision(Action.WAIT)


def decide(
    run: Run, job: JobStatus, outcome: RunOutcome, *, acknowledged: bool, max_attempts: int
) -> Decision:
    """Decide about an active run. `outcome` only matters if the job has ended or is absent."""
    if job.state in (JobState.PENDING, JobState.RUNNING):
        return _decide_alive(run, job)
    if run.status is Status.LOST and job.state is not JobState.SUCCEEDED:
        return _decide_after_loss(run, outcome, max_attempts)
    if outcome.is_finished:
        return Decision(Action.FINISH)
    if job.state is JobState.SUCCEEDED:
        detail = "the job succeeded, but no adapter is in the store"
        return Decision(Action.MOVE, Status.FAILED, Reason.UNPUBLISHED, detail)
    if run.stop is not None:
        return Decision(Action.MOVE, Status.STOPPED, Reason(run.stop))
    if job.state is JobState.STOPPED:
        # Nobody requested that of the service: an orphan was stopped, a node was taken away.
        detail = "the job was stopped on the cluster, not through the service"
        return Decision(Action.MOVE, Status.LOST, Reason.PREEMPTED, detail)
    if job.state is JobState.FAILED:
        return _decide_failed(run, job, outcome, max_attempts)
    return _decide_absent(run, outcome, acknowledged)


def compute_retry_wait_s(attempt: int) -> float:
    """Compute the delay of the next attempt: it doubles, to spare a failing cluster."""
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
        # No code, or that of a signal: the driver did not exit by itself.
        return Decision(Action.MOVE, Status.LOST, Reason.JOB_ABSENT, message)
    if code == INVALID_INPUT_CODE:
        return Decision(Action.MOVE, Status.FAILED, Reason.REFUSED, message)
    if code == UNREACHABLE_CODE:
        if run.attempt < max_attempts:
            return Decision(Action.MOVE, Status.LOST, Reason.JOB_ABSENT, message)
        return Decision(Action.MOVE, Status.FAILED, Reason.OUTSIDE, message)
    # The code would fail again; only a lost machine is worth another attempt.
    return Decision(Action.MOVE, Status.FAILED, Reason.CRASHED, message)


def _decide_absent(run: Run, outcome: RunOutcome, acknowledged: bool) -> Decision:
    if not acknowledged:
        return Decision(Action.SUBMIT)
    if outcome.alive:
        return WAIT
    detail = "the cluster answers but does not know the job"
    return Decision(Action.MOVE, Status.LOST, Reason.JOB_ABSENT, detail)


def _decide_after_loss(run: Run, outcome: RunOutcome, max_attempts: int) -> Decision:
    if outcome.is_finished:
        return Decision(Action.FINISH)
    if run.stop is not None:
        return Decision(Action.MOVE, Status.STOPPED, Reason(run.stop))
    if outcome.alive:
        return WAIT
    if run.attempt >= max_attempts:
        detail = f"the job was lost {run.attempt} times: {run.detail}"
        return Decision(Action.MOVE, Status.FAILED, Reason.ATTEMPTS, detail)
    return Decision(Action.MOVE, Status.PLANNED)
