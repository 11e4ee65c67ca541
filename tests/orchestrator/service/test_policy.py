"""What follows for a run from what was seen of it: the policy as tables."""

from __future__ import annotations

import pytest

from orchestrator.cluster.door import Seen, Sight
from orchestrator.registry.lifecycle import MOVES, Reason, Status
from orchestrator.registry.values import Run
from orchestrator.service.policy import Act, Next, Told, decide, wait_s
from tests.orchestrator.service.made import run_of

NOTHING, ADAPTER = Told(), Told(adapter="chat@v1")
S, R = Status, Reason


def decided(
    run: Run, sight: Sight, told: Told = NOTHING, *, acknowledged: bool = True, most: int = 3
) -> Next:
    return decide(run, sight, told, acknowledged=acknowledged, max_attempts=most)


@pytest.mark.parametrize(
    ("status", "seen", "act", "to"),
    [
        pytest.param(S.SUBMITTED, Seen.PENDING, Act.WAIT, None, id="waits for its cluster"),
        pytest.param(S.SUBMITTED, Seen.RUNNING, Act.MOVE, S.RUNNING, id="runs now"),
        pytest.param(S.RUNNING, Seen.RUNNING, Act.WAIT, None, id="runs on"),
        pytest.param(S.RUNNING, Seen.PENDING, Act.WAIT, None, id="waits again"),
        pytest.param(S.LOST, Seen.RUNNING, Act.MOVE, S.RUNNING, id="turns up again"),
        pytest.param(S.LOST, Seen.PENDING, Act.WAIT, None, id="turns up waiting"),
    ],
)
def test_a_job_that_lives_is_followed(status: Status, seen: Seen, act: Act, to: Status | None):
    found = decided(run_of(status), Sight(seen), ADAPTER)
    assert (found.act, found.to) == (act, to)


@pytest.mark.parametrize("seen", [Seen.SUCCEEDED, Seen.FAILED, Seen.STOPPED, Seen.ABSENT])
@pytest.mark.parametrize("status", [S.SUBMITTED, S.RUNNING, S.PUBLISHING, S.LOST])
@pytest.mark.parametrize("told", [ADAPTER, Told(nothing_new=True)], ids=["adapter", "nothing new"])
def test_a_run_that_made_what_it_was_to_make_is_done_however_its_job_ended(
    seen: Seen, status: Status, told: Told
):
    assert decided(run_of(status), Sight(seen, exit_code=1), told).act is Act.FINISH


@pytest.mark.parametrize(
    ("sight", "to", "reason"),
    [
        pytest.param(Sight(Seen.SUCCEEDED), S.FAILED, R.UNPUBLISHED, id="no adapter"),
        pytest.param(Sight(Seen.FAILED, 1), S.FAILED, R.CRASHED, id="a crash repeats"),
        pytest.param(Sight(Seen.FAILED, 2), S.FAILED, R.REFUSED, id="wrong input"),
        pytest.param(Sight(Seen.FAILED, 3), S.LOST, R.GONE, id="outside, tried again"),
        pytest.param(Sight(Seen.FAILED, None), S.LOST, R.GONE, id="no exit code"),
        pytest.param(Sight(Seen.FAILED, 137), S.LOST, R.GONE, id="killed"),
        pytest.param(Sight(Seen.FAILED, -9), S.LOST, R.GONE, id="killed, as Python says it"),
        pytest.param(Sight(Seen.STOPPED), S.STOPPED, R.USER, id="stopped on the cluster"),
        pytest.param(Sight(Seen.ABSENT), S.LOST, R.GONE, id="not known any more"),
    ],
)
def test_the_end_of_a_job_says_what_becomes_of_its_run(sight: Sight, to: Status, reason: Reason):
    found = decided(run_of(S.RUNNING), sight)
    assert (found.act, found.to, found.reason) == (Act.MOVE, to, reason)


def test_what_does_not_answer_is_an_end_once_the_attempts_are_spent():
    found = decided(run_of(S.RUNNING, attempt=3), Sight(Seen.FAILED, 3))
    assert (found.to, found.reason) == (S.FAILED, R.OUTSIDE)


def test_a_submission_that_nobody_acknowledged_is_made_again_under_the_same_attempt():
    found = decided(run_of(S.SUBMITTED), Sight(Seen.ABSENT), acknowledged=False)
    assert found == Next(Act.SUBMIT)


def test_a_lease_that_is_beaten_still_is_a_living_job_whatever_the_cluster_forgot():
    alive = Told(alive=True)
    assert decided(run_of(S.RUNNING), Sight(Seen.ABSENT), alive).act is Act.WAIT
    assert decided(run_of(S.LOST), Sight(Seen.ABSENT), alive).act is Act.WAIT


@pytest.mark.parametrize("seen", [Seen.ABSENT, Seen.FAILED, Seen.STOPPED])
def test_a_lost_run_is_planned_again_until_its_attempts_are_spent(seen: Seen):
    again = decided(run_of(S.LOST, attempt=2), Sight(seen))
    assert (again.to, again.reason) == (S.PLANNED, None)
    spent = decided(run_of(S.LOST, attempt=3), Sight(seen))
    assert (spent.to, spent.reason) == (S.FAILED, R.ATTEMPTS)


@pytest.mark.parametrize("reason", [R.USER, R.REPLACED])
def test_a_run_that_should_stop_is_ended_and_then_stopped(reason: Reason):
    run = run_of(S.RUNNING, stop=reason.value)
    assert decided(run, Sight(Seen.RUNNING)).act is Act.END_JOB
    for sight in (Sight(Seen.STOPPED), Sight(Seen.FAILED, 1), Sight(Seen.ABSENT)):
        found = decided(run, sight)
        assert (found.to, found.reason) == (S.STOPPED, reason)
    lost = decided(run_of(S.LOST, stop=reason.value), Sight(Seen.ABSENT))
    assert (lost.to, lost.reason) == (S.STOPPED, reason)


@pytest.mark.parametrize("status", [S.SUBMITTED, S.RUNNING, S.PUBLISHING, S.LOST])
@pytest.mark.parametrize("seen", list(Seen))
@pytest.mark.parametrize("code", [None, 0, 1, 2, 3, 137])
@pytest.mark.parametrize("stop", [None, "user"])
@pytest.mark.parametrize("attempt", [1, 3])
@pytest.mark.parametrize("acknowledged", [True, False])
def test_no_decision_is_a_move_that_the_lifecycle_forbids(
    status: Status, seen: Seen, code: int | None, stop: str | None, attempt: int, acknowledged: bool
):
    run = run_of(status, attempt=attempt, stop=stop)
    found = decided(run, Sight(seen, code), acknowledged=acknowledged)
    if found.act is Act.MOVE:
        assert found.to in MOVES[status]


def test_the_wait_after_a_loss_doubles_and_has_an_end():
    assert [wait_s(attempt) for attempt in (1, 2, 3)] == [5.0, 10.0, 20.0]
    assert wait_s(50) == 600.0
