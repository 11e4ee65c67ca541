"""Of two services one moves the runs of a cluster: the one that holds its lease."""

from __future__ import annotations

from orchestrator.cluster.base import Job
from orchestrator.cluster.errors import ClusterRefused
from orchestrator.registry.lifecycle import Status
from tests.orchestrator.cluster.fake import FakeCluster
from tests.orchestrator.control.control import KILLED, RUNNING, ControlHarness
from tests.orchestrator.registry.builders import age_leases


def test_one_of_two_services_holds_the_cluster_until_its_lease_ends(control: ControlHarness):
    other = control.make_reconciler("b")
    run = control.submit()
    assert control.main.reconcile() and not other.reconcile()
    age_leases(control.database, 60)
    assert other.reconcile() and not control.main.reconcile()
    assert control.list_submissions(run) == [f"{run.id}-a1"]
    other.close()
    assert control.main.reconcile()


def test_a_service_that_lost_its_lease_moves_nothing(control: ControlHarness):
    run = control.submit()
    other = control.make_reconciler("b")
    control.reconcile(2)

    def suspend() -> None:
        # Suspended after listing the jobs, until another service took over and moved the run.
        control.cluster.on_list = lambda: None
        control.cluster.forget_all()
        age_leases(control.database, 60)
        assert other.reconcile()

    control.cluster.forget_all()
    control.cluster.add_foreign_job(control.cluster.started_jobs[0], KILLED)
    control.cluster.on_list = suspend
    before = control.list_events(run)
    assert control.main.reconcile() is False
    assert control.list_events(run) == [*before, "lost"]


def test_a_service_that_lost_its_lease_fails_no_run_of_the_next_one(
    control: ControlHarness,
):
    other, run = control.make_reconciler("b"), control.submit()
    cluster = control.cluster

    class SlowCluster(FakeCluster):
        """Answers after another service has submitted the same attempt."""

        def submit(self, job: Job) -> None:
            age_leases(control.database, 60)
            assert other.reconcile()
            raise ClusterRefused(self.name, "no such runtime environment")

    control.cluster = SlowCluster("default", RUNNING)
    assert control.make_reconciler("c").reconcile() is False
    assert control.list_submissions(run) == [] and [
        job.submission for job in cluster.started_jobs
    ] == [f"{run.id}-a1"]
    assert control.read_status(run) is Status.SUBMITTED
