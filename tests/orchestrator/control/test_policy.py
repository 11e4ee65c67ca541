"""The policy as tables: job state and outcome in, decision out."""

from __future__ import annotations

from itertools import product

import pytest

from orchestrator.cluster.base import JobState, JobStatus
from orchestrator.control.policy import Action, Decision, RunOutcome, compute_retry_wait_s, decide
from orchestrator.registry.lifecycle import MOVES, Reason, Status
from orchestrator.registry.values import Run
from tests.orchestrator.control.builders import make_run

NO_OUTCOME, ADAPTER = RunOutcome(), RunOutcome(adapter="chat@v1")
NO_NEW_DATA = RunOutcome(no_new_data=True)
ENDED_STATES = (JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED, JobState.ABSENT)
S, R = Status, Reason
ACTIVE_STATUSES = (S.SUBMITTED, S.RUNNING, S.PUBLISHING, S.LOST)


def decide_on(
    run: Run,
    job: JobStatus,
    outcome: RunOutcome = NO_OUTCOME,
    *,
    acknowledged: bool = True,
    max_attempts: int = 3,
) -> Decision:
    return decide(run, job, outcome, acknowledged=acknowledged, max_attempts=max_attempts)


@pytest.mark.parametrize(
    ("status", "state", "action", "target"),
    [
        pytest.param(S.SUBMITTED, JobState.PENDING, Action.WAIT, None, id="waits for its cluster"),
        pytest.param(S.SUBMITTED, JobState.RUNNING, Action.MOVE, S.RUNNING, id="runs now"),
        pytest.param(S.RUNNING, JobState.RUNNING, Action.WAIT, None, id="runs on"),
        pytest.param(S.RUNNING, JobState.PENDING, Action.WAIT, None, id="waits again"),
        pytest.param(S.LOST, JobState.RUNNING, Action.MOVE, S.RUNNING, id="turns up again"),
        pytest.param(S.LOST, JobState.PENDING, Action.WAIT, None, id="turns up waiting"),
    ],
)
def test_a_live_job_is_followed(
    status: Status, state: JobState, action: Action, target: Status | None
):
    decision = decide_on(make_run(status), JobStatus(state), ADAPTER)
    assert (decision.action, decision.target) == (action, target)


def test_a_run_with_its_outcome_finishes_however_its_job_ended():
    for state, status, outcome in product(ENDED_STATES, ACTIVE_STATUSES, (ADAPTER, NO_NEW_DATA)):
        decision = decide_on(make_run(status), JobStatus(state, exit_code=1), outcome)
        assert decision.action is Action.FINISH, (state, status, outcome)


@pytest.mark.parametrize(
    ("job", "target", "reason"),
    [
        pytest.param(JobStatus(JobState.SUCCEEDED), S.FAILED, R.UNPUBLISHED, id="no adapter"),
        pytest.param(JobStatus(JobState.FAILED, 1), S.FAILED, R.CRASHED, id="a crash repeats"),
        pytest.param(JobStatus(JobState.FAILED, 2), S.FAILED, R.REFUSED, id="wrong input"),
        pytest.param(
            JobStatus(JobState.FAILED, 3), S.LOST, R.JOB_ABSENT, id="outside, tried again"
        ),
        pytest.param(JobStatus(JobState.FAILED, None), S.LOST, R.JOB_ABSENT, id="no exit code"),
        pytest.param(JobStatus(JobState.FAILED, 137), S.LOST, R.JOB_ABSENT, id="killed"),
        pytest.param(
            JobStatus(JobState.FAILED, -9), S.LOST, R.JOB_ABSENT, id="killed, as Python says it"
        ),
        pytest.param(JobStatus(JobState.STOPPED), S.LOST, R.PREEMPTED, id="stopped on the cluster"),
        pytest.param(JobStatus(JobState.ABSENT), S.LOST, R.JOB_ABSENT, id="not known any more"),
    ],
)
def test_the_end_of_a_job_decides_the_status_of_its_run(
    job: JobStatus, target: Status, reason: Reason
):
    decision = decide_on(make_run(S.RUNNING), job)
    assert (decision.action, decision.target, decision.reason) == (Action.MOVE, target, reason)


def test_an_unreachable_service_fails_the_run_after_the_last_attempt():
    decision = decide_on(make_run(S.RUNNING, attempt=3), JobStatus(JobState.FAILED, 3))
    assert (decision.target, decision.reason) == (S.FAILED, R.OUTSIDE)


def test_an_unacknowledged_submission_is_repeated_as_the_same_attempt():
    decision = decide_on(make_run(S.SUBMITTED), JobStatus(JobState.ABSENT), acknowledged=False)
    assert decision == Decision(Action.SUBMIT)


def test_a_fresh_heartbeat_means_a_live_job_whatever_the_cluster_knows():
    alive = RunOutcome(alive=True)
    assert decide_on(make_run(S.RUNNING), JobStatus(JobState.ABSENT), alive).action is Action.WAIT
    assert decide_on(make_run(S.LOST), JobStatus(JobState.ABSENT), alive).action is Action.WAIT


@pytest.mark.parametrize("state", [JobState.ABSENT, JobState.FAILED, JobState.STOPPED])
def test_a_lost_run_is_planned_again_until_its_last_attempt(state: JobState):
    again = decide_on(make_run(S.LOST, attempt=2), JobStatus(state))
    assert (again.target, again.reason) == (S.PLANNED, None)
    spent = decide_on(make_run(S.LOST, attempt=3), JobStatus(state))
    assert (spent.target, spent.reason) == (S.FAILED, R.ATTEMPTS)


@pytest.mark.parametrize("reason", [R.USER, R.REPLACED])
def test_the_job_of_a_stop_request_is_stopped_first_and_then_the_run(reason: Reason):
    run = make_run(S.RUNNING, stop=reason.value)
    assert decide_on(run, JobStatus(JobState.RUNNING)).action is Action.END_JOB
    for job in (
        JobStatus(JobState.STOPPED),
        JobStatus(JobState.FAILED, 1),
        JobStatus(JobState.ABSENT),
    ):
        decision = decide_on(run, job)
        assert (decision.target, decision.reason) == (S.STOPPED, reason)
    lost = decide_on(make_run(S.LOST, stop=reason.value), JobStatus(JobState.ABSENT))
    assert (lost.target, lost.reason) == (S.STOPPED, reason)


def test_no_decision_is_a_move_that_the_lifecycle_forbids():
    codes, stops = (None, 0, 1, 2, 3, 137), (None, "user")
    cases = product(ACTIVE_STATUSES, JobState, codes, stops, (1, 3), (True, False))
    for case in cases:
        status, state, code, stop, attempt, acknowledged = case
        run = make_run(status, attempt=attempt, stop=stop)
        decision = decide_on(run, JobStatus(state, code), acknowledged=acknowledged)
        if decision.action is Action.MOVE:
            assert decision.target in MOVES[status], case


def test_the_retry_delay_doubles_up_to_a_limit():
    assert [compute_retry_wait_s(attempt) for attempt in (1, 2, 3)] == [5.0, 10.0, 20.0]
    assert compute_retry_wait_s(50) == 600.0
