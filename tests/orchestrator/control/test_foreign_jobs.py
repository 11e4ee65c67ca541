"""Two services with one name and two databases: neither touches the other's jobs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from jobs.store.open import open_store
from orchestrator.cluster.base import Job, JobState, JobStatus
from orchestrator.control.dispatcher import FOREIGN_JOB_RUNNING
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.migrate import upgrade
from orchestrator.registry.rebuild.rebuild import rebuild
from orchestrator.registry.tenancy.instances import read_instance
from tests.orchestrator.control.control import RUNNING, ControlHarness

ELSEWHERE = "0123456789abcdef" * 2
FOREIGN = {"slora_service": "here", "slora_instance": ELSEWHERE}


@pytest.fixture
def namesake(control: ControlHarness, tmp_path: Path) -> Iterator[ControlHarness]:
    """Another service with the name, the store and the cluster of `control`."""
    url = f"sqlite:///{tmp_path / 'namesake.db'}"
    upgrade(url)
    database = Database(url)
    harness = ControlHarness(database, control.store)
    harness.cluster = control.cluster
    harness.main = harness.make_reconciler("b")
    yield harness
    database.close()


def read_gauge(control: ControlHarness) -> float | None:
    return control.observer.registry.get_sample_value("slora_foreign_jobs", {"cluster": "default"})


def test_each_job_carries_the_id_of_its_registry(control: ControlHarness):
    run = control.submit()
    control.reconcile()
    (job,) = control.cluster.started_jobs
    assert job.metadata["slora_instance"] == control.instance
    request = open_store(control.store).get(f"runs/{run.id}/request.json")
    assert control.instance.encode() in request


def test_a_namesake_reports_each_foreign_job_once_and_leaves_it(
    control: ControlHarness, namesake: ControlHarness, caplog: pytest.LogCaptureFixture
):
    run = control.submit()
    control.reconcile(2)
    own = namesake.submit("own")
    with caplog.at_level(logging.ERROR):
        namesake.reconcile(3)
    (record,) = caplog.records
    assert f"job {run.id}-a1" in record.getMessage() and control.instance in record.getMessage()
    assert read_gauge(namesake) == 1
    assert control.cluster.stopped_ids == []
    assert namesake.read_status(own) is Status.RUNNING
    with namesake.database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM runs")) == 1  # not adopted
    with caplog.at_level(logging.ERROR):
        control.reconcile()
    assert control.read_status(run) is Status.RUNNING and read_gauge(control) == 1
    control.cluster.play(f"{run.id}-a1", JobStatus(JobState.FAILED, exit_code=1))
    namesake.reconcile()
    assert read_gauge(namesake) == 0


def test_a_run_of_this_registry_waits_for_the_foreign_job_of_its_id(control: ControlHarness):
    run = control.submit()
    control.cluster.add_foreign_job(Job(f"{run.id}-a1", "jobs.finetune", (), FOREIGN), RUNNING)
    control.reconcile(3)
    waiting = control.read(run)
    assert (waiting.status, waiting.wait_reason) == (Status.PLANNED, FOREIGN_JOB_RUNNING)
    assert control.cluster.submitted_ids == [] and control.cluster.stopped_ids == []


def test_a_job_of_an_older_version_belongs_to_its_name(control: ControlHarness):
    old = {"slora_service": "here"}
    control.cluster.add_foreign_job(Job("stray-a1", "jobs.finetune", (), old), RUNNING)
    control.reconcile()
    assert control.cluster.stopped_ids == ["stray-a1"] and read_gauge(control) == 0


def test_a_new_registry_takes_over_the_lost_one_and_its_jobs(
    control: ControlHarness, namesake: ControlHarness
):
    run = control.submit()
    control.reconcile(2)
    result = rebuild(namesake.database, open_store(control.store))
    assert result.identity.instance == read_instance(namesake.database) == control.instance
    restarted = ControlHarness(namesake.database, control.store)
    restarted.cluster = control.cluster
    restarted.main = restarted.make_reconciler("c")
    restarted.reconcile(2)
    assert restarted.read_status(run) is Status.RUNNING
    assert control.list_submissions(run) == [f"{run.id}-a1"] and control.cluster.stopped_ids == []


def test_a_registry_with_runs_keeps_its_id_unless_it_is_told(
    control: ControlHarness, namesake: ControlHarness
):
    control.submit()
    namesake.submit()
    store = open_store(control.store)
    own = namesake.instance
    result = rebuild(namesake.database, store)
    assert (result.identity.instance, result.identity.others) == (own, {control.instance: 1})
    result = rebuild(namesake.database, store, instance=control.instance)
    assert (result.identity.instance, result.identity.previous) == (control.instance, own)
    assert read_instance(namesake.database) == control.instance


def test_a_new_registry_chooses_none_of_two(
    control: ControlHarness, namesake: ControlHarness, tmp_path: Path
):
    control.submit()
    namesake.submit()
    url = f"sqlite:///{tmp_path / 'third.db'}"
    upgrade(url)
    third = Database(url)
    own = read_instance(third)
    result = rebuild(third, open_store(control.store))
    assert (result.identity.instance, read_instance(third)) == (own, own)
    assert set(result.identity.others) == {control.instance, namesake.instance}
    third.close()


def test_a_new_registry_keeps_its_id_on_request(control: ControlHarness, namesake: ControlHarness):
    control.submit()
    own = namesake.instance
    rebuild(namesake.database, open_store(control.store), instance="own")
    assert read_instance(namesake.database) == own
