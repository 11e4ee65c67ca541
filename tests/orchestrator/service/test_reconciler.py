"""A run followed through whatever happens: to its end, once, on evidence and on nothing less."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import StoreUnreachable
from jobs.store.adapters import commit
from jobs.store.objects import open_store
from orchestrator.cluster.door import Job, Seen, Sight
from orchestrator.cluster.errors import ClusterRefused
from orchestrator.cluster.standin import FakeCluster
from orchestrator.registry import marks, runs
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.values import Run
from tests.jobs.store.made import adapter_folder, draft
from tests.orchestrator.registry.made import age_leases, new
from tests.orchestrator.service.control import KILLED, PENDING, RUNNING, SUCCEEDED, Control


def test_a_run_goes_from_the_queue_to_done_with_its_adapter(control: Control, tmp_path: Path):
    run = control.asked()
    control.cluster.plays(f"{run.id}-a1", PENDING, RUNNING, SUCCEEDED)
    control.steps(2)
    assert control.status(run) is Status.SUBMITTED
    control.steps()
    control.commits(run, tmp_path / "adapter")
    control.steps(2)
    assert control.path(run) == ["planned", "submitted", "running", "publishing", "done"]
    assert control.starts(run) == [f"{run.id}-a1"]


def test_the_job_is_a_module_of_ours_with_its_paper_in_the_store(control: Control):
    run = control.asked()
    control.steps()
    (job,) = control.cluster.started
    paper = f"runs/{run.id}/spec.yaml"
    assert job.module == "jobs.finetune"
    assert job.words == ("--spec", job.words[1], "--run", run.id, "--attempt", "1")
    assert job.words[1].endswith(paper) and open_store(control.store).head(paper) is not None
    assert job.metadata == {"slora_service": "here", "run": run.id, "attempt": "1"}


def test_unreachable_is_not_dead(control: Control):
    run = control.asked()
    control.steps(2)
    before = control.now(run)
    control.cluster.unreachable = True
    assert [control.main.step() for _ in range(5)] == [False] * 5
    assert control.now(run) == before
    control.cluster.unreachable = False
    control.steps(3)
    assert control.path(run) == ["planned", "submitted", "running"]
    assert control.starts(run) == [f"{run.id}-a1"]


def test_a_submission_whose_answer_was_lost_starts_one_job(control: Control):
    control.cluster.swallowed_answers = 1
    run = control.asked()
    assert control.main.step() is False
    assert control.status(run) is Status.SUBMITTED
    control.steps(3)
    assert control.starts(run) == [f"{run.id}-a1"] == control.cluster.asked
    assert control.status(run) is Status.RUNNING and control.now(run).attempt == 1


def test_a_submission_that_never_arrived_is_made_again_as_the_same_attempt(control: Control):
    control.cluster.lost_requests = 2
    run = control.asked()
    control.steps(3)
    assert control.cluster.asked == [f"{run.id}-a1"] * 3
    assert control.starts(run) == [f"{run.id}-a1"] and control.now(run).attempt == 1


def test_a_service_that_died_before_it_submitted_is_made_good_by_the_next(control: Control):
    run = control.asked()
    with control.database.write() as session:
        runs.move(session, run, Status.SUBMITTED)
    control.steps(2)
    assert control.starts(run) == [f"{run.id}-a1"] and control.status(run) is Status.RUNNING


def test_a_lost_run_is_made_again_when_its_wait_is_over(control: Control):
    run = control.asked()
    control.steps(2)
    control.cluster.lose_all()
    control.steps()
    assert control.status(run) is Status.LOST
    control.steps(2)
    assert control.status(run) is Status.PLANNED and control.starts(run) == [f"{run.id}-a1"]
    control.wait_over()
    control.steps(2)
    assert control.starts(run) == [f"{run.id}-a1", f"{run.id}-a2"]
    assert control.now(run).attempt == 2 and control.status(run) is Status.RUNNING


def test_a_run_is_lost_only_so_often(control: Control):
    run = control.asked()
    for _ in range(6):
        control.steps(2)
        control.cluster.lose_all()
        control.steps(3)
        control.wait_over()
    assert len(control.starts(run)) == 3 == control.rules.max_attempts
    ended = control.now(run)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.ATTEMPTS)
    assert "lost 3 times" in ended.detail


def test_what_a_lost_job_had_committed_is_its_end(control: Control, tmp_path: Path):
    run = control.asked()
    control.steps(2)
    control.commits(run, tmp_path / "adapter")
    control.cluster.lose_all()
    control.steps(2)
    assert control.status(run) is Status.DONE and len(control.starts(run)) == 1


@pytest.mark.parametrize(
    ("of", "tokens"),
    [
        pytest.param({}, 100, id="its own are known"),
        pytest.param({"run": "chat-t0"}, 10 * 4 * 64, id="of a search one trial's are"),
    ],
)
def test_a_run_that_is_done_counts_with_what_it_trained(
    control: Control, tmp_path: Path, of: dict[str, str], tokens: int
):
    run = control.asked()
    control.steps(2)
    about = {"run": run.id, "search": run.id if of else None, "ledger": {"tokens": 100}, **of}
    commit(open_store(control.store), adapter_folder(tmp_path / "adapter"), draft(**about))
    control.cluster.plays(f"{run.id}-a1", SUCCEEDED)
    control.steps()
    assert control.status(run) is Status.DONE and control.now(run).tokens == tokens


def test_an_adapter_that_turns_up_after_the_loss_is_the_end_too(control: Control, tmp_path: Path):
    run = control.asked()
    control.steps(2)
    control.cluster.lose_all()
    control.steps()
    control.commits(run, tmp_path / "adapter")
    control.steps(2)
    assert control.path(run)[-3:] == ["lost", "publishing", "done"]


def test_a_job_whose_lease_is_beaten_is_not_lost(control: Control):
    run = control.asked()
    control.steps(2)
    beat(control, run, time.time())
    control.cluster.lose_all()
    control.steps(3)
    assert control.status(run) is Status.RUNNING
    beat(control, run, time.time() - 3600)
    control.steps()
    assert control.status(run) is Status.LOST


def test_without_its_store_nobody_knows_how_a_run_ended(control: Control):
    run = control.asked()
    control.steps(2)
    control.cluster.lose_all()
    control.open = away
    control.steps(3)
    assert control.status(run) is Status.RUNNING
    control.open = open_store
    control.steps()
    assert control.status(run) is Status.LOST


def test_one_run_whose_store_is_away_holds_up_no_other(control: Control):
    run = control.asked()
    control.steps(2)
    control.cluster.plays(f"{run.id}-a1", SUCCEEDED)
    real, gone = control.open, run.store

    def opened(url: str) -> Any:
        return away(url) if url == gone else real(url)

    control.open = opened
    with control.database.write() as session:
        other = runs.add(session, new_like(run, store=f"{gone}/below"))
        other = runs.move(session, other, Status.SUBMITTED)
        marks.seen(session, [other])
    control.steps(2)
    assert control.status(run) is Status.RUNNING and control.status(other) is not Status.SUBMITTED


def test_a_store_that_is_away_is_waited_for_once_in_a_pass(control: Control):
    for _ in range(5):
        control.asked()
    control.steps(2)
    control.cluster.lose_all()
    opened: list[str] = []

    def counted(url: str) -> Any:
        opened.append(url)
        return away(url)

    control.open = counted
    control.steps()
    assert len(opened) == 1
    control.open = open_store
    control.steps()
    with control.database.read() as session:
        assert {run.status for run in runs.page(session)} == {Status.LOST}


@pytest.mark.parametrize("paper", [None, b"{", b'{"format": 2}'], ids=["gone", "cut", "unknown"])
def test_a_run_whose_request_is_not_to_be_read_ends_and_says_so(
    control: Control, paper: bytes | None
):
    run, key = control.asked(), "runs/{}/request.json"
    store = open_store(control.store)
    store.delete(key.format(run.id))
    if paper is not None:
        store.put(key.format(run.id), paper)
    control.steps()
    ended = control.now(run)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.REFUSED)
    assert "request" in ended.detail and control.cluster.asked == []


@pytest.mark.parametrize(
    ("sight", "status", "reason"),
    [
        pytest.param(SUCCEEDED, Status.FAILED, Reason.UNPUBLISHED, id="ended well with nothing"),
        pytest.param(Sight(Seen.FAILED, 1), Status.FAILED, Reason.CRASHED, id="an error"),
        pytest.param(Sight(Seen.FAILED, 2), Status.FAILED, Reason.REFUSED, id="its input"),
        pytest.param(Sight(Seen.STOPPED), Status.STOPPED, Reason.USER, id="stopped there"),
        pytest.param(KILLED, Status.LOST, Reason.GONE, id="killed"),
        pytest.param(Sight(Seen.FAILED), Status.LOST, Reason.GONE, id="its node died"),
    ],
)
def test_how_a_job_ended_is_how_its_run_does(
    control: Control, sight: Sight, status: Status, reason: Reason
):
    run = control.asked()
    control.cluster.plays(f"{run.id}-a1", RUNNING, sight)
    control.steps(3)
    ended = control.now(run)
    assert (ended.status, ended.reason) == (status, reason)


def test_a_cluster_that_refuses_ends_the_run_and_says_why(control: Control):
    control.cluster.refuses = "no such runtime environment"
    run, other = control.asked(), control.asked("other")
    control.steps()
    ended = control.now(run)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.OUTSIDE)
    assert "no such runtime environment" in ended.detail
    assert control.status(other) is Status.FAILED


@pytest.mark.parametrize("steps", [0, 1, 2], ids=["planned", "submitted", "running"])
def test_a_run_is_stopped_wherever_it_is(control: Control, steps: int):
    run = control.asked()
    control.steps(steps)
    control.stop(run)
    control.steps(3)
    ended = control.now(run)
    assert (ended.status, ended.reason) == (Status.STOPPED, Reason.USER)
    assert control.cluster.stopped == ([f"{run.id}-a1"] if steps else [])
    assert control.path(run).count("stopping") == 1


def test_a_run_that_waits_for_its_next_attempt_is_stopped_at_once(control: Control):
    run = control.asked()
    control.steps(2)
    control.cluster.lose_all()
    control.steps(2)
    assert control.status(run) is Status.PLANNED and control.now(run).not_before is not None
    control.stop(run)
    control.steps()
    assert control.status(run) is Status.STOPPED


def test_of_two_services_one_has_the_cluster_until_it_is_gone(control: Control):
    other = control.reconciler("b")
    run = control.asked()
    assert control.main.step() and not other.step()
    age_leases(control.database, 60)
    assert other.step() and not control.main.step()
    assert control.starts(run) == [f"{run.id}-a1"]
    other.close()
    assert control.main.step()


def test_one_that_slept_through_its_lease_moves_nothing(control: Control):
    run = control.asked()
    other = control.reconciler("b")
    control.steps(2)

    def sleeps() -> None:
        # It looked; then it slept until another one had taken over and had moved the run.
        control.cluster.on_look = lambda: None
        control.cluster.lose_all()
        age_leases(control.database, 60)
        assert other.step()

    control.cluster.lose_all()
    control.cluster.has_job(control.cluster.started[0], KILLED)
    control.cluster.on_look = sleeps
    before = control.path(run)
    assert control.main.step() is False
    assert control.path(run) == [*before, "lost"]


def test_one_that_slept_through_its_lease_ends_no_run_that_the_next_one_submitted(control: Control):
    other, run = control.reconciler("b"), control.asked()
    cluster = control.cluster

    class Sleepy(FakeCluster):
        """Its answer comes when another service has long submitted the same attempt."""

        def submit(self, job: Job) -> None:
            age_leases(control.database, 60)
            assert other.step()
            raise ClusterRefused(self.name, "no such runtime environment")

    control.cluster = Sleepy("default", RUNNING)
    assert control.reconciler("c").step() is False
    assert control.starts(run) == [] and [job.submission for job in cluster.started] == [
        f"{run.id}-a1"
    ]
    assert control.status(run) is Status.SUBMITTED


def beat(control: Control, run: Run, at: float) -> None:
    lease = json.dumps({"time": at, "attempt": 1}).encode()
    open_store(control.store).put(f"runs/{run.id}/lease.json", lease)


def away(url: str) -> Any:
    raise StoreUnreachable("the store is away")


def new_like(run: Run, **changes: Any) -> Any:
    return new(f"{run.id}-other", **changes)
