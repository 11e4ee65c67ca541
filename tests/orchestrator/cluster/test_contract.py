"""What every cluster does, the real one and the stand-in."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cluster.door import Cluster, Job, Seen, Sight
from orchestrator.cluster.errors import ClusterRefused
from orchestrator.cluster.ray_jobs import RayCluster
from orchestrator.cluster.standin import FakeCluster

MODULE = "tests.orchestrator.cluster.job"
ALIVE = (Seen.PENDING, Seen.RUNNING)
LOG = b"the job says \xc3\xa4\n"
JOB_S = 60.0


class Scene:
    """A cluster, and jobs to give it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self._folder = cluster, folder

    def job(self, name: str, *, code: int = 0, long: bool = False) -> Job:
        """A job that ends with a code, or does not end by itself."""
        submission = f"{self._folder.name}-{name}-a1"
        if isinstance(self.cluster, FakeCluster):
            end = Sight(Seen.FAILED if code else Seen.SUCCEEDED, exit_code=code)
            path = [Sight(Seen.PENDING), Sight(Seen.RUNNING), *([] if long else [end])]
            self.cluster.plays(submission, *path)
        words = ["--marks", str(self._folder / name), "--seconds", "60" if long else "0"]
        about = {"slora_service": "test", "run": name}
        return Job(submission, MODULE, (*words, "--code", str(code)), about)

    def until(self, job: Job, *seen: Seen) -> Sight:
        end = time.monotonic() + JOB_S
        while (sight := self.cluster.look(job.submission)).seen not in seen:
            assert time.monotonic() < end, sight
            threading.Event().wait(0.1)
        return sight

    def starts(self, job: Job) -> int:
        if isinstance(self.cluster, FakeCluster):
            return sum(one.submission == job.submission for one in self.cluster.started)
        return (self._folder / job.metadata["run"]).read_text().count("started")


@pytest.fixture(params=["stand-in", pytest.param("ray", marks=pytest.mark.ray)])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    if request.param == "stand-in":
        yield Scene(FakeCluster(), tmp_path)
        return
    head, token = request.getfixturevalue("head"), request.getfixturevalue("token")
    cluster = RayCluster("here", head.url, token=token, python=sys.executable)
    yield Scene(cluster, tmp_path)
    cluster.close()


def test_a_job_that_nobody_submitted_is_absent(scene: Scene):
    assert scene.cluster.look("nobody-a1").seen is Seen.ABSENT
    assert "nobody-a1" not in scene.cluster.jobs()
    assert scene.cluster.log("nobody-a1") == b""
    scene.cluster.stop("nobody-a1")


def test_a_job_is_followed_to_its_end_with_what_was_given_along(scene: Scene):
    job = scene.job("good")
    scene.cluster.submit(job)
    assert scene.cluster.jobs()[job.submission].metadata == job.metadata
    sight = scene.until(job, Seen.SUCCEEDED, Seen.FAILED)
    assert (sight.seen, sight.exit_code) == (Seen.SUCCEEDED, 0)
    assert scene.cluster.jobs()[job.submission].seen is Seen.SUCCEEDED


def test_a_job_that_fails_says_with_which_code(scene: Scene):
    job = scene.job("bad", code=2)
    scene.cluster.submit(job)
    sight = scene.until(job, Seen.SUCCEEDED, Seen.FAILED)
    assert (sight.seen, sight.exit_code) == (Seen.FAILED, 2)


def test_the_same_submission_again_is_the_same_job_while_it_runs_and_when_it_is_over(scene: Scene):
    job = scene.job("twice")
    scene.cluster.submit(job)
    scene.cluster.submit(job)
    scene.until(job, Seen.SUCCEEDED)
    scene.cluster.submit(job)
    assert scene.cluster.look(job.submission).seen is Seen.SUCCEEDED
    assert scene.starts(job) == 1


def test_a_job_is_stopped_and_to_stop_it_again_is_no_error(scene: Scene):
    job = scene.job("stopped", long=True)
    scene.cluster.submit(job)
    scene.until(job, Seen.RUNNING)
    scene.cluster.stop(job.submission)
    assert scene.until(job, Seen.STOPPED).seen is Seen.STOPPED
    scene.cluster.stop(job.submission)


def test_a_log_goes_on_behind_any_byte(scene: Scene):
    job = scene.job("talks")
    scene.cluster.submit(job)
    scene.until(job, Seen.SUCCEEDED)
    if isinstance(scene.cluster, FakeCluster):
        scene.cluster.logs[job.submission] = b"Ray's own lines\n" + LOG
    whole = scene.cluster.log(job.submission)
    assert whole.endswith(LOG)
    assert scene.cluster.log(job.submission, len(whole) - 2) == LOG[-2:]
    assert scene.cluster.log(job.submission, len(whole) + 5) == b""


def test_it_says_what_it_has(scene: Scene):
    found = scene.cluster.capacity()
    assert found.cpus >= 2 and found.nodes >= 1
    assert 0 <= found.free_cpus <= found.cpus and 0 <= found.free_gpus <= found.gpus
    assert found.node_memory is None or found.node_memory > 1 << 28


@pytest.mark.parametrize(
    "word", ["a;b", "$(id)", "a b", "`id`", "a\nb", "-rf", "../../etc", "", "a&", "'", "\u00e4"]
)
def test_a_word_that_a_shell_could_obey_is_refused(scene: Scene, word: str):
    job = Job("hostile-a1", MODULE, ("--marks", word), {})
    with pytest.raises(ClusterRefused, match="may mean something to a shell"):
        scene.cluster.submit(job)
    assert "hostile-a1" not in scene.cluster.jobs()
