"""The queue's end: what is submitted, in which order, within which limits, and why others wait."""

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
    """One job at a time."""
    return ControlHarness(control.database, control.store, max_runs=1)


def order(control: ControlHarness) -> list[str]:
    return [job.metadata["run"] for job in control.cluster.started_jobs]


def limits(control: ControlHarness, **changes: int) -> None:
    with control.database.write() as session:
        there = projects.ensure_project(session, "default")
        projects.set_limits(session, there, ProjectLimits(**changes))


def test_the_most_urgent_goes_first_and_the_oldest_of_those(narrow: ControlHarness):
    first, second = narrow.submit(), narrow.submit()
    urgent = narrow.submit(priority=5)
    narrow.cluster.script = (SUCCEEDED,)
    narrow.reconcile(6)
    assert order(narrow) == [urgent.id, first.id, second.id]


def test_a_project_that_uses_nothing_comes_before_one_that_uses_much(narrow: ControlHarness):
    many = [narrow.submit(project="loud") for _ in range(4)]
    wide = ControlHarness(narrow.database, narrow.store, max_runs=2)
    late = wide.submit(project="quiet")
    wide.reconcile()
    assert order(wide) == [many[0].id, late.id]


def test_a_project_with_thousands_of_runs_hides_no_other_s(control: ControlHarness):
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
        session.execute(text("INSERT INTO projects SELECT 'loud', NULL, NULL, NULL, 0, 1"))
        session.execute(
            text("UPDATE runs SET project = 'loud', priority = 0 WHERE id LIKE 'loud%'")
        )
        session.execute(text("UPDATE runs SET priority = 0"))
    wide = ControlHarness(control.database, control.store, max_runs=4)
    wide.reconcile()
    with wide.database.read() as session:
        taken = session.scalars(text("SELECT project FROM runs WHERE status <> 'planned'")).all()
    assert "quiet" in taken


def test_no_more_jobs_than_the_cluster_may_have_even_if_none_has_arrived(narrow: ControlHarness):
    first, second = narrow.submit(), narrow.submit()
    narrow.cluster.lost_requests = 3
    narrow.reconcile(3)
    assert narrow.read_status(second) is Status.PLANNED
    assert "at its limit of active runs" in narrow.read(second).wait_reason
    narrow.reconcile(2)
    assert order(narrow) == [first.id]


def test_jobs_of_others_take_none_of_our_room(narrow: ControlHarness):
    ours = narrow.submit()
    theirs = Job("theirs-a1", "jobs.finetune", (), {"slora_service": "elsewhere"})
    narrow.cluster.add_foreign_job(theirs, RUNNING)
    narrow.reconcile()
    assert order(narrow) == [ours.id]


@pytest.mark.parametrize(
    ("limit", "waits"),
    [
        pytest.param({"max_runs": 1}, "uses 1 of its 1 runs at once", id="runs"),
        pytest.param({"max_workers": 1}, "uses 1 of its 1 workers at once", id="workers"),
        pytest.param(
            {"max_tokens_a_day": 3000}, "uses 2,560 of its 3,000 tokens in 24 hours", id="tokens"
        ),
    ],
)
def test_a_project_waits_at_its_limit(control: ControlHarness, limit: dict[str, int], waits: str):
    limits(control, **limit)
    first, second = control.submit(), control.submit()
    control.reconcile(2)
    assert order(control) == [first.id]
    assert (
        control.read(second).status is Status.PLANNED and waits in control.read(second).wait_reason
    )


def test_what_no_limit_can_ever_hold_ends_with_the_reason(control: ControlHarness):
    limits(control, max_tokens_a_day=100)
    run = control.submit()
    control.reconcile()
    ended = control.read(run)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.QUOTA)
    assert "2,560 tokens" in ended.detail and order(control) == []


def test_what_does_not_fit_never_reaches_the_cluster(control: ControlHarness):
    control.fits = lambda run: PlacementResult(rejection="it needs a larger machine")
    run = control.submit()
    control.reconcile()
    ended = control.read(run)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.REFUSED)
    assert ended.detail == "it needs a larger machine" and control.cluster.submitted_ids == []


def test_a_run_that_does_not_fit_yet_waits_and_takes_nobody_s_room(narrow: ControlHarness):
    large, small = narrow.submit("large"), narrow.submit("small")
    lacks = {large.id}

    def fits(run: Run) -> PlacementResult:
        return (
            PlacementResult(wait_reason="too few CPUs yet")
            if run.id in lacks
            else PlacementResult()
        )

    narrow.fits = fits
    narrow.cluster.script = (RUNNING, SUCCEEDED)
    narrow.reconcile(3)
    assert order(narrow) == [small.id] and narrow.read(large).wait_reason == "too few CPUs yet"
    lacks.clear()
    narrow.reconcile(3)
    assert order(narrow) == [small.id, large.id]


def test_a_stopped_run_of_the_queue_never_starts(narrow: ControlHarness):
    first, second = narrow.submit(), narrow.submit()
    narrow.stop(second)
    narrow.reconcile(2)
    assert narrow.read_status(second) is Status.STOPPED and order(narrow) == [first.id]
