"""A run is followed to its end through every failure, once, and only on evidence."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from jobs.errors import Fault, InputError, StoreUnreachable
from jobs.store.adapters.operations import commit
from jobs.store.local import DirectoryStore
from jobs.store.open import open_store
from jobs.store.runs.heartbeat import HEARTBEAT
from orchestrator.cluster.base import JobState, JobStatus
from orchestrator.registry import runs
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.values import Run
from tests.jobs.store.builders import make_adapter_folder, make_draft
from tests.orchestrator.control.control import KILLED, PENDING, RUNNING, SUCCEEDED, ControlHarness


def test_a_run_goes_from_the_queue_to_done_with_its_adapter(
    control: ControlHarness, tmp_path: Path
):
    run = control.submit()
    control.cluster.play(f"{run.id}-a1", PENDING, RUNNING, SUCCEEDED)
    control.reconcile(2)
    assert control.read_status(run) is Status.SUBMITTED
    control.reconcile()
    control.commit(run, tmp_path / "adapter")
    control.reconcile(2)
    assert control.list_events(run) == ["planned", "submitted", "running", "publishing", "done"]
    assert control.list_submissions(run) == [f"{run.id}-a1"]


def test_the_job_is_a_known_module_with_its_spec_in_the_store(control: ControlHarness):
    run = control.submit()
    control.reconcile()
    (job,) = control.cluster.started_jobs
    key = f"runs/{run.id}/spec.yaml"
    assert job.module == "jobs.finetune"
    arguments = ("--spec", job.arguments[1], "--run", run.id, "--attempt", "1", "--leave-pointer")
    # The wait of its first attempt began with the run.
    arguments = (*arguments, "--submitted", f"{run.created_at:.3f}")
    assert job.arguments == arguments
    assert job.arguments[1].endswith(key) and open_store(control.store).head(key) is not None
    names = {"slora_service": "here", "slora_instance": control.instance}
    assert job.metadata == {**names, "run": run.id, "attempt": "1", "project": "default"}


def test_a_job_gets_the_environment_of_its_project(control: ControlHarness):
    control.make_environment = lambda run: {"SLORA_PROJECT": run.project, "CANARY": "s3cr3t"}
    control.submit()
    control.reconcile()
    (job,) = control.cluster.started_jobs
    assert job.environment == {"SLORA_PROJECT": "default", "CANARY": "s3cr3t"}
    assert "s3cr3t" not in repr(job)


def test_a_run_without_credentials_fails_with_the_fix(control: ControlHarness):
    def refuse(run: Run) -> dict[str, str]:
        raise InputError([Fault("store", "no credentials", "Set projects.lab.role_arn.")])

    control.make_environment = refuse
    run = control.submit()
    control.reconcile()
    refused = control.read(run)
    assert (refused.status, refused.reason) == (Status.FAILED, Reason.REFUSED)
    assert refused.detail == "store: no credentials. Set projects.lab.role_arn."
    assert control.cluster.submitted_ids == []


def test_a_run_waits_for_its_credentials_and_delays_no_other(
    control: ControlHarness, caplog: pytest.LogCaptureFixture
):
    missing = ["chat"]

    def make_environment(run: Run) -> dict[str, str]:
        if run.name in missing:
            raise StoreUnreachable("the role can't be assumed now")
        return {}

    control.make_environment = make_environment
    waiting, other = control.submit("chat"), control.submit("other")
    control.reconcile(2)
    assert control.list_submissions(waiting) == [] and "can't be assumed now" in caplog.text
    assert control.list_submissions(other) == [f"{other.id}-a1"]
    missing.clear()
    control.reconcile()
    assert control.list_submissions(waiting) == [f"{waiting.id}-a1"]


def test_unreachable_is_not_dead(control: ControlHarness):
    run = control.submit()
    control.reconcile(2)
    before = control.read(run)
    control.cluster.unreachable = True
    assert [control.main.reconcile() for _ in range(5)] == [False] * 5
    assert control.read(run) == before
    control.cluster.unreachable = False
    control.reconcile(3)
    assert control.list_events(run) == ["planned", "submitted", "running"]
    assert control.list_submissions(run) == [f"{run.id}-a1"]


def test_a_submission_with_a_lost_response_starts_one_job(control: ControlHarness):
    control.cluster.lost_responses = 1
    run = control.submit()
    assert control.main.reconcile() is False
    assert control.read_status(run) is Status.SUBMITTED
    control.reconcile(3)
    assert control.list_submissions(run) == [f"{run.id}-a1"] == control.cluster.submitted_ids
    assert control.read_status(run) is Status.RUNNING and control.read(run).attempt == 1


def test_a_lost_submission_is_repeated_as_the_same_attempt(control: ControlHarness):
    control.cluster.lost_requests = 2
    run = control.submit()
    control.reconcile(3)
    assert control.cluster.submitted_ids == [f"{run.id}-a1"] * 3
    assert control.list_submissions(run) == [f"{run.id}-a1"] and control.read(run).attempt == 1


def test_a_submission_that_a_dead_service_planned_is_made_by_the_next(control: ControlHarness):
    run = control.submit()
    with control.database.write() as session:
        runs.move(session, run, Status.SUBMITTED)
    control.reconcile(2)
    assert (
        control.list_submissions(run) == [f"{run.id}-a1"]
        and control.read_status(run) is Status.RUNNING
    )


def test_a_lost_run_is_submitted_again_after_its_delay(control: ControlHarness):
    run = control.submit()
    control.reconcile(2)
    control.cluster.forget_all()
    control.reconcile()
    assert control.read_status(run) is Status.LOST
    control.reconcile(2)
    assert control.read_status(run) is Status.PLANNED and control.list_submissions(run) == [
        f"{run.id}-a1"
    ]
    control.end_retry_wait()
    control.reconcile(2)
    assert control.list_submissions(run) == [f"{run.id}-a1", f"{run.id}-a2"]
    assert control.read(run).attempt == 2 and control.read_status(run) is Status.RUNNING


def test_a_run_fails_after_max_attempts_losses(control: ControlHarness):
    run = control.submit()
    for _ in range(6):
        control.reconcile(2)
        control.cluster.forget_all()
        control.reconcile(3)
        control.end_retry_wait()
    assert len(control.list_submissions(run)) == 3 == control.rules.max_attempts
    ended = control.read(run)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.ATTEMPTS)
    assert "lost 3 times" in ended.detail


def test_a_lost_job_that_had_committed_is_done(control: ControlHarness, tmp_path: Path):
    run = control.submit()
    control.reconcile(2)
    control.commit(run, tmp_path / "adapter")
    control.cluster.forget_all()
    control.reconcile(2)
    assert control.read_status(run) is Status.DONE and len(control.list_submissions(run)) == 1


@pytest.mark.parametrize(
    ("of", "tokens"),
    [
        pytest.param({}, 100, id="its own are known"),
        pytest.param({"run": "chat-t0"}, 10 * 4 * 64, id="of a search one trial's are"),
    ],
)
def test_a_done_run_counts_the_tokens_that_it_trained(
    control: ControlHarness, tmp_path: Path, of: dict[str, str], tokens: int
):
    run = control.submit()
    control.reconcile(2)
    about = {"run": run.id, "search": run.id if of else None, "ledger": {"tokens": 100}, **of}
    commit(
        open_store(control.store), make_adapter_folder(tmp_path / "adapter"), make_draft(**about)
    )
    control.cluster.play(f"{run.id}-a1", SUCCEEDED)
    control.reconcile()
    assert control.read_status(run) is Status.DONE and control.read(run).tokens == tokens


def test_an_adapter_that_appears_after_the_loss_ends_the_run(
    control: ControlHarness, tmp_path: Path
):
    run = control.submit()
    control.reconcile(2)
    control.cluster.forget_all()
    control.reconcile()
    control.commit(run, tmp_path / "adapter")
    control.reconcile(2)
    assert control.list_events(run)[-3:] == ["lost", "publishing", "done"]


def test_a_job_with_a_fresh_heartbeat_is_not_lost(control: ControlHarness):
    run = control.submit()
    control.reconcile(2)
    write_heartbeat(control, run, time.time())
    control.cluster.forget_all()
    control.reconcile(3)
    assert control.read_status(run) is Status.RUNNING
    write_heartbeat(control, run, time.time() - 3600)
    control.reconcile()
    assert control.read_status(run) is Status.LOST


@pytest.mark.parametrize(
    "data", [None, b"{", b'{"format": 2}'], ids=["missing", "truncated", "unknown"]
)
def test_a_run_with_an_unreadable_request_fails_with_the_reason(
    control: ControlHarness, data: bytes | None
):
    run, key = control.submit(), "runs/{}/request.json"
    store = open_store(control.store)
    store.delete(key.format(run.id))
    if data is not None:
        store.put(key.format(run.id), data)
    control.reconcile()
    ended = control.read(run)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.REFUSED)
    assert "request" in ended.detail and control.cluster.submitted_ids == []


@pytest.mark.parametrize(
    ("job", "status", "reason"),
    [
        pytest.param(SUCCEEDED, Status.FAILED, Reason.UNPUBLISHED, id="ended well with nothing"),
        pytest.param(JobStatus(JobState.FAILED, 1), Status.FAILED, Reason.CRASHED, id="an error"),
        pytest.param(JobStatus(JobState.FAILED, 2), Status.FAILED, Reason.REFUSED, id="its input"),
        pytest.param(JobStatus(JobState.STOPPED), Status.LOST, Reason.PREEMPTED, id="stopped"),
        pytest.param(KILLED, Status.LOST, Reason.JOB_ABSENT, id="killed"),
        pytest.param(
            JobStatus(JobState.FAILED), Status.LOST, Reason.JOB_ABSENT, id="its node died"
        ),
    ],
)
def test_the_end_of_a_job_is_the_end_of_its_run(
    control: ControlHarness, job: JobStatus, status: Status, reason: Reason
):
    run = control.submit()
    control.cluster.play(f"{run.id}-a1", RUNNING, job)
    control.reconcile(3)
    ended = control.read(run)
    assert (ended.status, ended.reason) == (status, reason)


def test_a_run_whose_job_somebody_stopped_on_the_cluster_is_resubmitted(control: ControlHarness):
    run = control.submit()
    control.reconcile(2)
    control.cluster.stop(f"{run.id}-a1")
    control.reconcile(2)
    assert control.list_events(run)[-2:] == ["lost", "planned"]
    control.end_retry_wait()
    control.reconcile(2)
    assert control.list_submissions(run) == [f"{run.id}-a1", f"{run.id}-a2"]
    assert control.read_status(run) is Status.RUNNING


def test_a_run_that_the_cluster_refuses_fails_with_the_reason(control: ControlHarness):
    control.cluster.refusal = "no such runtime environment"
    run, other = control.submit(), control.submit("other")
    control.reconcile()
    ended = control.read(run)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.OUTSIDE)
    assert "no such runtime environment" in ended.detail
    assert control.read_status(other) is Status.FAILED


@pytest.mark.parametrize("steps", [0, 1, 2], ids=["planned", "submitted", "running"])
def test_a_run_is_stopped_in_any_status(control: ControlHarness, steps: int):
    run = control.submit()
    control.reconcile(steps)
    control.stop(run)
    control.reconcile(3)
    ended = control.read(run)
    assert (ended.status, ended.reason) == (Status.STOPPED, Reason.USER)
    assert control.cluster.stopped_ids == ([f"{run.id}-a1"] if steps else [])
    assert control.list_events(run).count("stopping") == 1


def test_a_run_in_its_retry_delay_is_stopped_at_once(control: ControlHarness):
    run = control.submit()
    control.reconcile(2)
    control.cluster.forget_all()
    control.reconcile(2)
    assert control.read_status(run) is Status.PLANNED and control.read(run).not_before is not None
    control.stop(run)
    control.reconcile()
    assert control.read_status(run) is Status.STOPPED


def write_heartbeat(control: ControlHarness, run: Run, at: float) -> None:
    """Write a heartbeat as if at a time of the store's clock; the writer's is a day ahead."""
    store = DirectoryStore(Path(control.store.removeprefix("file://")))
    key = f"runs/{run.id}/{HEARTBEAT}"
    store.put(key, json.dumps({"time": at + 86400, "attempt": 1}).encode())
    os.utime(store.local_path(key), (at, at))
