"""The contract that the real cluster and the fake one fulfill."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cluster.base import Cluster, Job, JobState, JobStatus
from orchestrator.cluster.errors import ClusterRefused
from orchestrator.cluster.ray_jobs import RayCluster
from tests.orchestrator.cluster.fake import FakeCluster
from tests.ray_head import Head
from tests.waiting import wait_for

MODULE = "tests.orchestrator.cluster.job"
ACTIVE_STATES = (JobState.PENDING, JobState.RUNNING)
LOG = b"the job says \xc3\xa4\n"
JOB_S = 60.0


class ClusterHarness:
    """A cluster, and jobs to submit to it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self._folder = cluster, folder

    def make_job(self, name: str, *, code: int = 0, long: bool = False) -> Job:
        """Make a job that ends with an exit code, or does not end by itself."""
        submission = f"{self._folder.name}-{name}-a1"
        if isinstance(self.cluster, FakeCluster):
            end = JobStatus(JobState.FAILED if code else JobState.SUCCEEDED, exit_code=code)
            path = [
                JobStatus(JobState.PENDING),
                JobStatus(JobState.RUNNING),
                *([] if long else [end]),
            ]
            self.cluster.play(submission, *path)
        arguments = ["--marks", str(self._folder / name), "--seconds", "60" if long else "0"]
        metadata = {"slora_service": "test", "run": name}
        return Job(submission, MODULE, (*arguments, "--code", str(code)), metadata)

    def wait_until(self, job: Job, *states: JobState) -> JobStatus:
        def read_status() -> JobStatus | None:
            status = self.cluster.get_status(job.submission)
            return status if status.state in states else None

        return wait_for(read_status, timeout_s=JOB_S)

    def count_starts(self, job: Job) -> int:
        if isinstance(self.cluster, FakeCluster):
            return sum(
                started.submission == job.submission for started in self.cluster.started_jobs
            )
        return (self._folder / job.metadata["run"]).read_text().count("started")


@pytest.fixture(params=["fake", pytest.param("ray", marks=pytest.mark.ray)])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ClusterHarness]:
    if request.param == "fake":
        yield ClusterHarness(FakeCluster(), tmp_path)
        return
    head, token = request.getfixturevalue("head"), request.getfixturevalue("token")
    cluster = RayCluster("here", head.url, token=token, python=sys.executable)
    yield ClusterHarness(cluster, tmp_path)
    cluster.close()


def test_a_job_that_nobody_submitted_is_absent(scene: ClusterHarness):
    assert scene.cluster.get_status("nobody-a1").state is JobState.ABSENT
    assert "nobody-a1" not in scene.cluster.list_jobs()
    assert scene.cluster.read_log("nobody-a1") == b""
    scene.cluster.stop("nobody-a1")


def test_a_job_is_followed_to_its_end_with_its_metadata(scene: ClusterHarness):
    job = scene.make_job("good")
    scene.cluster.submit(job)
    assert scene.cluster.list_jobs()[job.submission].metadata == job.metadata
    status = scene.wait_until(job, JobState.SUCCEEDED, JobState.FAILED)
    assert (status.state, status.exit_code) == (JobState.SUCCEEDED, 0)
    assert scene.cluster.list_jobs()[job.submission].state is JobState.SUCCEEDED


def test_a_failed_job_reports_its_exit_code(scene: ClusterHarness):
    job = scene.make_job("bad", code=2)
    scene.cluster.submit(job)
    status = scene.wait_until(job, JobState.SUCCEEDED, JobState.FAILED)
    assert (status.state, status.exit_code) == (JobState.FAILED, 2)


def test_a_repeated_submission_is_the_same_job(scene: ClusterHarness):
    job = scene.make_job("twice")
    scene.cluster.submit(job)
    scene.cluster.submit(job)
    scene.wait_until(job, JobState.SUCCEEDED)
    scene.cluster.submit(job)
    assert scene.cluster.get_status(job.submission).state is JobState.SUCCEEDED
    assert scene.count_starts(job) == 1


def test_a_job_can_be_stopped_twice(scene: ClusterHarness):
    job = scene.make_job("stopped", long=True)
    scene.cluster.submit(job)
    scene.wait_until(job, JobState.RUNNING)
    scene.cluster.stop(job.submission)
    assert scene.wait_until(job, JobState.STOPPED).state is JobState.STOPPED
    scene.cluster.stop(job.submission)


def test_a_log_is_read_from_any_byte(scene: ClusterHarness):
    job = scene.make_job("talks")
    scene.cluster.submit(job)
    scene.wait_until(job, JobState.SUCCEEDED)
    if isinstance(scene.cluster, FakeCluster):
        scene.cluster.logs[job.submission] = b"Ray's own lines\n" + LOG
    log = scene.cluster.read_log(job.submission)
    assert log.endswith(LOG)
    assert scene.cluster.read_log(job.submission, len(log) - 2) == LOG[-2:]
    assert scene.cluster.read_log(job.submission, len(log) + 5) == b""


@pytest.mark.ray
def test_a_job_and_its_tasks_have_the_jobs_environment(head: Head, token: Path, tmp_path: Path):
    cluster = RayCluster("here", head.url, token=token, python=sys.executable)
    scene = ClusterHarness(cluster, tmp_path)
    job = replace(scene.make_job("variable"), environment={"SLORA_TEST_VARIABLE": "of-lab"})
    cluster.submit(job)
    scene.wait_until(job, JobState.SUCCEEDED)
    assert b"the driver has of-lab, its task of-lab" in cluster.read_log(job.submission)
    cluster.close()


def test_a_cluster_reports_its_capacity(scene: ClusterHarness):
    capacity = scene.cluster.get_capacity()
    assert capacity.cpus >= 2 and capacity.nodes >= 1
    assert 0 <= capacity.free_cpus <= capacity.cpus and 0 <= capacity.free_gpus <= capacity.gpus
    assert capacity.node_memory is None or capacity.node_memory > 1 << 28


@pytest.mark.parametrize(
    "argument", ["a;b", "$(id)", "a b", "`id`", "a\nb", "-rf", "../../etc", "", "a&", "'", "\u00e4"]
)
def test_an_argument_with_shell_syntax_is_rejected(scene: ClusterHarness, argument: str):
    job = Job("hostile-a1", MODULE, ("--marks", argument), {})
    with pytest.raises(ClusterRefused, match="may contain shell syntax"):
        scene.cluster.submit(job)
    assert "hostile-a1" not in scene.cluster.list_jobs()
