"""What follows for a run from what was seen of it: the policy as tables."""

from __future__ import annotations

import pytest

from orchestrator.cluster.base import JobState, JobStatus
from orchestrator.control.policy import Action, Decision, RunOutcome, compute_retry_wait_s, decide
from orchestrator.registry.lifecycle import MOVES, Reason, Status
from orchestrator.registry.values import Run
from tests.orchestrator.control.builders import make_run

NOTHING, ADAPTER = RunOutcome(), RunOutcome(adapter="chat@v1")
S, R = Status, Reason


def decide_on(
    run: Run,
    sight: JobStatus,
    told: RunOutcome = NOTHING,
    *,
    acknowledged: bool = True,
    most: int = 3,
) -> Decision:
    return decide(run, sight, told, acknowledged=acknowledged, max_attempts=most)


@pytest.mark.parametrize(
    ("status", "seen", "act", "to"),
    [
        pytest.param(S.SUBMITTED, JobState.PENDING, Action.WAIT, None, id="waits for its cluster"),
        pytest.param(S.SUBMITTED, JobState.RUNNING, Action.MOVE, S.RUNNING, id="runs now"),
        pytest.param(S.RUNNING, JobState.RUNNING, Action.WAIT, None, id="runs on"),
        pytest.param(S.RUNNING, JobState.PENDING, Action.WAIT, None, id="waits again"),
        pytest.param(S.LOST, JobState.RUNNING, Action.MOVE, S.RUNNING, id="turns up again"),
        pytest.param(S.LOST, JobState.PENDING, Action.WAIT, None, id="turns up waiting"),
    ],
)
def test_a_job_that_lives_is_followed(
    status: Status, seen: JobState, act: Action, to: Status | None
):
    found = decide_on(make_run(status), JobStatus(seen), ADAPTER)
    assert (found.action, found.target) == (act, to)


@pytest.mark.parametrize(
    "seen", [JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED, JobState.ABSENT]
)
@pytest.mark.parametrize("status", [S.SUBMITTED, S.RUNNING, S.PUBLISHING, S.LOST])
@pytest.mark.parametrize(
    "told", [ADAPTER, RunOutcome(no_new_data=True)], ids=["adapter", "nothing new"]
)
def test_a_run_that_made_what_it_was_to_make_is_done_however_its_job_ended(
    seen: JobState, status: Status, told: RunOutcome
):
    assert decide_on(make_run(status), JobStatus(seen, exit_code=1), told).action is Action.FINISH


@pytest.mark.parametrize(
    ("sight", "to", "reason"),
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
        pytest.param(JobStatus(JobState.STOPPED), S.STOPPED, R.USER, id="stopped on the cluster"),
        pytest.param(JobStatus(JobState.ABSENT), S.LOST, R.JOB_ABSENT, id="not known any more"),
    ],
)
def test_the_end_of_a_job_says_what_becomes_of_its_run(
    sight: JobStatus, to: Status, reason: Reason
):
    found = decide_on(make_run(S.RUNNING), sight)
    assert (found.action, found.target, found.reason) == (Action.MOVE, to, reason)


def test_what_does_not_answer_is_an_end_once_the_attempts_are_spent():
    found = decide_on(make_run(S.RUNNING, attempt=3), JobStatus(JobState.FAILED, 3))
    assert (found.target, found.reason) == (S.FAILED, R.OUTSIDE)


def test_a_submission_that_nobody_acknowledged_is_made_again_under_the_same_attempt():
    found = decide_on(make_run(S.SUBMITTED), JobStatus(JobState.ABSENT), acknowledged=False)
    assert found == Decision(Action.SUBMIT)


def test_a_lease_that_is_beaten_still_is_a_living_job_whatever_the_cluster_forgot():
    alive = RunOutcome(alive=True)
    assert decide_on(make_run(S.RUNNING), JobStatus(JobState.ABSENT), alive).action is Action.WAIT
    assert decide_on(make_run(S.LOST), JobStatus(JobState.ABSENT), alive).action is Action.WAIT


@pytest.mark.parametrize("seen", [JobState.ABSENT, JobState.FAILED, JobState.STOPPED])
def test_a_lost_run_is_planned_again_until_its_attempts_are_spent(seen: JobState):
    again = decide_on(make_run(S.LOST, attempt=2), JobStatus(seen))
    assert (again.target, again.reason) == (S.PLANNED, None)
    spent = decide_on(make_run(S.LOST, attempt=3), JobStatus(seen))
    assert (spent.target, spent.reason) == (S.FAILED, R.ATTEMPTS)


@pytest.mark.parametrize("reason", [R.USER, R.REPLACED])
def test_a_run_that_should_stop_is_ended_and_then_stopped(reason: Reason):
    run = make_run(S.RUNNING, stop=reason.value)
    assert decide_on(run, JobStatus(JobState.RUNNING)).action is Action.END_JOB
    for sight in (
        JobStatus(JobState.STOPPED),
        JobStatus(JobState.FAILED, 1),
        JobStatus(JobState.ABSENT),
    ):
        found = decide_on(run, sight)
        assert (found.target, found.reason) == (S.STOPPED, reason)
    lost = decide_on(make_run(S.LOST, stop=reason.value), JobStatus(JobState.ABSENT))
    assert (lost.target, lost.reason) == (S.STOPPED, reason)


@pytest.mark.parametrize("status", [S.SUBMITTED, S.RUNNING, S.PUBLISHING, S.LOST])
@pytest.mark.parametrize("seen", list(JobState))
@pytest.mark.parametrize("code", [None, 0, 1, 2, 3, 137])
@pytest.mark.parametrize("stop", [None, "user"])
@pytest.mark.parametrize("attempt", [1, 3])
@pytest.mark.parametrize("acknowledged", [True, False])
def test_no_decision_is_a_move_that_the_lifecycle_forbids(
    status: Status,
    seen: JobState,
    code: int | None,
    stop: str | None,
    attempt: int,
    acknowledged: bool,
):
    run = make_run(status, attempt=attempt, stop=stop)
    found = decide_on(run, JobStatus(seen, code), acknowledged=acknowledged)
    if found.action is Action.MOVE:
        assert found.target in MOVES[status]


def test_the_wait_after_a_loss_doubles_and_has_an_end():
    assert [compute_retry_wait_s(attempt) for attempt in (1, 2, 3)] == [5.0, 10.0, 20.0]
    assert compute_retry_wait_s(50) == 600.0
