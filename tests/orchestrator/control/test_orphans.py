"""Jobs without a run: those of this service are adopted or stopped, foreign ones are ignored."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from jobs.errors import StoreUnreachable
from jobs.store.open import open_store
from orchestrator.cluster.base import Job
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.rebuild.rebuild import rebuild
from orchestrator.registry.tenancy.audit_log import list_entries
from tests.orchestrator.control.control import RUNNING, SUCCEEDED, ControlHarness

OURS = {"slora_service": "here"}


def forget_all(control: ControlHarness) -> None:
    """Delete all runs, as if the registry was lost."""
    with control.database.write() as session:
        for table in ("events", "attempts", "runs"):
            session.execute(text(f"DELETE FROM {table}"))


def test_a_job_whose_run_was_lost_is_adopted_from_the_store(control: ControlHarness):
    run = control.submit(priority=7)
    control.reconcile(2)
    forget_all(control)
    control.reconcile(2)
    adopted = control.read(run)
    assert (adopted.status, adopted.attempt, adopted.priority) == (Status.RUNNING, 1, 7)
    assert control.cluster.stopped_ids == [] and control.list_submissions(run) == [f"{run.id}-a1"]


def test_a_job_continues_after_a_rebuild_that_did_not_know_of_it(
    control: ControlHarness,
):
    run = control.submit()
    control.reconcile(2)
    forget_all(control)
    rebuild(control.database, open_store(control.store))
    assert (control.read_status(run), control.read(run).attempt) == (Status.PLANNED, 0)
    control.reconcile(2)
    assert (control.read_status(run), control.read(run).attempt) == (Status.RUNNING, 1)
    assert control.cluster.stopped_ids == [] and control.list_submissions(run) == [f"{run.id}-a1"]


def test_a_job_continues_after_a_backup_without_its_attempt_was_restored(control: ControlHarness):
    run = control.submit()
    control.cluster.add_foreign_job(
        Job(f"{run.id}-a1", "jobs.finetune", (), {**OURS, "run": run.id}), RUNNING
    )
    control.reconcile(3)
    assert (control.read_status(run), control.read(run).attempt) == (Status.RUNNING, 1)
    assert control.cluster.stopped_ids == [] and control.list_submissions(run) == []


def test_a_job_of_an_unknown_run_is_stopped(control: ControlHarness):
    control.cluster.add_foreign_job(Job("stray-a1", "jobs.finetune", (), OURS), RUNNING)
    control.reconcile()
    assert control.cluster.stopped_ids == ["stray-a1"]


def test_a_stopped_job_is_in_the_audit_log_once(control: ControlHarness):
    job = Job("stray-a1", "jobs.finetune", (), OURS)
    # The cluster has not ended it yet when the next passes look.
    for _ in range(3):
        control.cluster.add_foreign_job(job, RUNNING)
        control.reconcile()
    assert control.cluster.stopped_ids == ["stray-a1"] * 3
    with control.database.read() as session:
        (entry,) = list_entries(session)
    assert (entry.action, entry.object_kind, entry.object) == ("stop", "job", "stray-a1")
    assert (entry.token, entry.label, entry.project) == (None, None, None)
    assert entry.after == {"cluster": "default", "reason": "it belongs to no known run"}


def test_no_job_is_stopped_while_a_store_is_unreachable(control: ControlHarness):
    control.cluster.add_foreign_job(Job("stray-a1", "jobs.finetune", (), OURS), RUNNING)

    def fail(url: str) -> Any:
        raise StoreUnreachable("the store does not answer")

    control.open = fail
    control.reconcile(2)
    assert control.cluster.stopped_ids == []
    control.open = open_store
    control.reconcile()
    assert control.cluster.stopped_ids == ["stray-a1"]


@pytest.mark.parametrize(
    ("submission", "metadata"),
    [
        pytest.param("stray-a1", {"slora_service": "elsewhere"}, id="another service's"),
        pytest.param("stray-a1", {}, id="somebody's"),
        pytest.param("raysubmit_abc", OURS, id="no name of ours"),
        pytest.param("stray-a0", OURS, id="no attempt of ours"),
        pytest.param("../../etc-a1", OURS, id="a path"),
        pytest.param("a\0b-a1", OURS, id="no text of a database"),
    ],
)
def test_foreign_jobs_are_ignored(
    control: ControlHarness, submission: str, metadata: dict[str, str]
):
    control.cluster.add_foreign_job(Job(submission, "jobs.finetune", (), metadata), RUNNING)
    run = control.submit()
    control.reconcile(2)
    assert control.cluster.stopped_ids == [] and control.read_status(run) is Status.RUNNING


def test_an_ended_job_is_not_an_orphan(control: ControlHarness):
    control.cluster.add_foreign_job(Job("stray-a1", "jobs.finetune", (), OURS), SUCCEEDED)
    control.reconcile()
    assert control.cluster.stopped_ids == []


def test_the_job_of_a_replaced_attempt_is_stopped(control: ControlHarness):
    run = control.submit()
    control.reconcile(2)
    (job,) = control.cluster.started_jobs
    control.cluster.forget_all()
    control.reconcile(2)
    control.end_retry_wait()
    control.reconcile(2)
    control.cluster.add_foreign_job(job, RUNNING)
    control.reconcile()
    assert control.cluster.stopped_ids == [f"{run.id}-a1"] and control.read(run).attempt == 2


def test_a_job_that_reappears_late_ends_before_the_next_attempt_begins(control: ControlHarness):
    run = control.submit()
    control.reconcile(2)
    (job,) = control.cluster.started_jobs
    control.cluster.forget_all()
    control.reconcile(2)
    assert control.read_status(run) is Status.PLANNED
    control.end_retry_wait()
    control.cluster.add_foreign_job(job, RUNNING)
    control.reconcile()
    assert control.cluster.stopped_ids == [f"{run.id}-a1"]
    assert control.list_submissions(run) == [f"{run.id}-a1"]
    assert "job of its previous attempt to end" in control.read(run).wait_reason
    control.reconcile(2)
    assert control.list_submissions(run) == [f"{run.id}-a1", f"{run.id}-a2"]


def test_a_lost_job_that_reappears_continues(control: ControlHarness):
    run = control.submit()
    control.reconcile(2)
    (job,) = control.cluster.started_jobs
    control.cluster.forget_all()
    control.reconcile()
    control.cluster.add_foreign_job(job, RUNNING)
    control.reconcile()
    assert (
        control.list_events(run)[-2:] == ["lost", "running"] and control.cluster.stopped_ids == []
    )


def test_the_job_of_an_ended_run_is_stopped(control: ControlHarness):
    run = control.submit()
    control.reconcile()
    control.cluster.play(f"{run.id}-a1", SUCCEEDED)
    control.reconcile()
    assert control.read_status(run) is Status.FAILED
    control.cluster.add_foreign_job(control.cluster.started_jobs[0], RUNNING)
    control.reconcile()
    assert control.cluster.stopped_ids == [f"{run.id}-a1"]
