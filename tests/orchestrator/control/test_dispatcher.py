"""Dispatching: the order of submissions, the limits, and the reasons to wait."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from orchestrator.cluster.base import Job
from orchestrator.control.dispatcher import PlacementResult
from orchestrator.registry import projects
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.values import ProjectLimits, Run
from tests.orchestrator.control.control import RUNNING, SUCCEEDED, ControlHarness


@pytest.fixture
def narrow(control: ControlHarness) -> ControlHarness:
    """Run one job at a time."""
    return ControlHarness(control.database, control.store, max_runs=1)


def list_started(control: ControlHarness) -> list[str]:
    return [job.metadata["run"] for job in control.cluster.started_jobs]


def set_limits(control: ControlHarness, **changes: int) -> None:
    with control.database.write() as session:
        project = projects.ensure_project(session, "default")
        projects.set_limits(session, project, ProjectLimits(**changes))


def test_runs_are_submitted_by_priority_and_then_by_age(narrow: ControlHarness):
    first, second = narrow.submit(), narrow.submit()
    urgent = narrow.submit(priority=5)
    narrow.cluster.script = (SUCCEEDED,)
    narrow.reconcile(6)
    assert list_started(narrow) == [urgent.id, first.id, second.id]


def test_an_idle_project_comes_before_a_busy_one(narrow: ControlHarness):
    many = [narrow.submit(project="loud") for _ in range(4)]
    wide = ControlHarness(narrow.database, narrow.store, max_runs=2)
    late = wide.submit(project="quiet")
    wide.reconcile()
    assert list_started(wide) == [many[0].id, late.id]


def test_thousands_of_runs_of_one_project_do_not_hide_others(control: ControlHarness):
    control.submit(project="quiet", priority=-5)
    with control.database.write() as session:
        columns = (
            "project, kind, name, store, workers, priority, status, detail, attempt, cluster, "
            "wait_reason, origin, created_at, updated_at, revision"
        )
        for number in range(1200):
            session.execute(
                text(
                    f"INSERT INTO runs (id, {columns}) SELECT :id, {columns} FROM runs "
                    "WHERE priority = -5 AND id NOT LIKE 'loud%'"
                ),
                {"id": f"loud-{number:04}"},
            )
        session.execute(
            text("INSERT INTO projects (name, created_at, revision) VALUES ('loud', 0, 1)")
        )
        session.execute(
            text("UPDATE runs SET project = 'loud', priority = 0 WHERE id LIKE 'loud%'")
        )
        session.execute(text("UPDATE runs SET priority = 0"))
    wide = ControlHarness(control.database, control.store, max_runs=4)
    wide.reconcile()
    with wide.database.read() as session:
        started = session.scalars(text("SELECT project FROM runs WHERE status <> 'planned'")).all()
    assert "quiet" in started


def test_unacknowledged_jobs_count_towards_the_limit_of_the_cluster(narrow: ControlHarness):
    first, second = narrow.submit(), narrow.submit()
    narrow.cluster.lost_requests = 3
    narrow.reconcile(3)
    assert narrow.read_status(second) is Status.PLANNED
    assert "at its limit of active runs" in narrow.read(second).wait_reason
    narrow.reconcile(2)
    assert list_started(narrow) == [first.id]


def test_foreign_jobs_do_not_count_towards_the_limit(narrow: ControlHarness):
    ours = narrow.submit()
    theirs = Job("theirs-a1", "jobs.finetune", (), {"slora_service": "elsewhere"})
    narrow.cluster.add_foreign_job(theirs, RUNNING)
    narrow.reconcile()
    assert list_started(narrow) == [ours.id]


@pytest.mark.parametrize(
    ("limit", "wait_reason_part"),
    [
        pytest.param({"max_runs": 1}, "uses 1 of its 1 runs at once", id="runs"),
        pytest.param({"max_workers": 1}, "uses 1 of its 1 workers at once", id="workers"),
        pytest.param({"max_cpus": 1}, "uses 1 of its 1 CPUs at once", id="cpus"),
        pytest.param(
            {"max_tokens_a_day": 3000}, "uses 2,560 of its 3,000 tokens in 24 hours", id="tokens"
        ),
    ],
)
def test_a_project_waits_at_its_limit(
    control: ControlHarness, limit: dict[str, int], wait_reason_part: str
):
    set_limits(control, **limit)
    first, second = control.submit(), control.submit()
    control.reconcile(2)
    assert list_started(control) == [first.id]
    assert (
        control.read(second).status is Status.PLANNED
        and wait_reason_part in control.read(second).wait_reason
    )


def test_a_run_above_its_projects_limit_fails_with_the_reason(control: ControlHarness):
    run = control.submit()
    set_limits(control, max_tokens_a_day=100)
    control.reconcile()
    ended = control.read(run)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.QUOTA)
    assert "2,560 tokens" in ended.detail and list_started(control) == []


def test_a_run_that_cannot_fit_is_not_submitted(control: ControlHarness):
    control.fits = lambda run: PlacementResult(rejection="needs a larger machine")
    run = control.submit()
    control.reconcile()
    ended = control.read(run)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.REFUSED)
    assert ended.detail == "needs a larger machine" and control.cluster.submitted_ids == []


def test_a_run_that_does_not_fit_yet_waits_without_a_slot(narrow: ControlHarness):
    large, small = narrow.submit("large"), narrow.submit("small")
    shortages = {large.id}

    def fits(run: Run) -> PlacementResult:
        return (
            PlacementResult(wait_reason="too few CPUs yet")
            if run.id in shortages
            else PlacementResult()
        )

    narrow.fits = fits
    narrow.cluster.script = (RUNNING, SUCCEEDED)
    narrow.reconcile(3)
    assert (
        list_started(narrow) == [small.id] and narrow.read(large).wait_reason == "too few CPUs yet"
    )
    shortages.clear()
    narrow.reconcile(3)
    assert list_started(narrow) == [small.id, large.id]


def test_a_queued_run_that_is_stopped_never_starts(narrow: ControlHarness):
    first, second = narrow.submit(), narrow.submit()
    narrow.stop(second)
    narrow.reconcile(2)
    assert narrow.read_status(second) is Status.STOPPED and list_started(narrow) == [first.id]
