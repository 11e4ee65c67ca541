"""The stand-in for a cluster: plays the sights that it is given, and fails as real ones do.

It is whole enough to run a service on: what is submitted is pending, then runs, then ends well,
one sight further at every look, unless a script says otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from jobs.errors import InputError
from orchestrator.cluster.base import MAX_LOG_BYTES, Capacity, Job, JobState, JobStatus
from orchestrator.cluster.entrypoint import build_entrypoint
from orchestrator.cluster.errors import ClusterRefused, ClusterUnreachable

DEFAULT_SCRIPT = (
    JobStatus(JobState.PENDING),
    JobStatus(JobState.RUNNING),
    JobStatus(JobState.SUCCEEDED, exit_code=0),
)
FINAL_STATES = (JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED)


class FakeCluster:
    """Remembers what was submitted, and answers from scripts."""

    def __init__(self, name: str = "default", *script: JobStatus) -> None:
        self.name = name
        self.script = script or DEFAULT_SCRIPT
        """For jobs that have none of their own."""
        self.started_jobs: list[Job] = []
        """Every job that began, in order: one that is here twice was run twice."""
        self.submitted_ids: list[str] = []
        """Every submission that was sent, arrived or not."""
        self.stopped_ids: list[str] = []
        self.logs: dict[str, bytes] = {}
        self.cluster_capacity = Capacity(
            cpus=64, gpus=8, free_cpus=64, free_gpus=8, nodes=4, node_memory=256 << 30
        )
        self.unreachable = False
        self.refusal = ""
        """Why it takes no job, where it takes none."""
        self.lost_responses = 0
        """Of so many submissions to come the job starts, and the answer is lost."""
        self.lost_requests = 0
        """So many submissions to come never arrive."""
        self.on_start: Callable[[Job], None] = lambda job: None
        """What a job does, besides being seen."""
        self.on_list: Callable[[], None] = lambda: None
        """What happens between a look at all jobs and its answer's arrival."""
        self._scripts: dict[str, list[JobStatus]] = {}
        self._jobs: dict[str, list[JobStatus]] = {}
        self._lock = threading.RLock()

    def play(self, submission: str, *script: JobStatus) -> None:
        """What is seen of this job from now on; it stays at the last."""
        with self._lock:
            self._scripts[submission] = list(script)
            if submission in self._jobs:
                self._jobs[submission] = list(script)

    def add_foreign_job(self, job: Job, *script: JobStatus) -> None:
        """A job that somebody else submitted."""
        with self._lock:
            statuses = script or self.script
            self._jobs[job.submission] = [
                replace(status, metadata=dict(job.metadata)) for status in statuses
            ]

    def forget_all(self) -> None:
        """As a head that was killed and came back: it answers, and knows nothing."""
        with self._lock:
            self._jobs.clear()

    def submit(self, job: Job) -> None:
        """Starts it once."""
        with self._lock:
            self.submitted_ids.append(job.submission)
            if self._is_lost(self.lost_requests):
                self.lost_requests -= 1
                raise ClusterUnreachable(self.name, "the request was lost")
            self._check_reachable()
            self._start(job)
            if self._is_lost(self.lost_responses):
                self.lost_responses -= 1
                raise ClusterUnreachable(self.name, "the answer was lost")

    def get_status(self, submission: str) -> JobStatus:
        """The job now, one sight further."""
        with self._lock:
            self._check_reachable()
            return self._advance(submission)

    def list_jobs(self) -> dict[str, JobStatus]:
        """Every job, each one sight further."""
        with self._lock:
            self._check_reachable()
            statuses = {submission: self._advance(submission) for submission in list(self._jobs)}
            self.on_list()
            return statuses

    def stop(self, submission: str) -> None:
        """Ends it at once."""
        with self._lock:
            self._check_reachable()
            self.stopped_ids.append(submission)
            statuses = self._jobs.get(submission)
            if statuses and statuses[0].state not in FINAL_STATES:
                self._jobs[submission] = [replace(statuses[0], state=JobState.STOPPED)]

    def read_log(self, submission: str, start: int = 0) -> bytes:
        """What a test put there."""
        with self._lock:
            self._check_reachable()
            return self.logs.get(submission, b"")[start : start + MAX_LOG_BYTES]

    def get_capacity(self) -> Capacity:
        """What a test says it has."""
        with self._lock:
            self._check_reachable()
            return self.cluster_capacity

    def close(self) -> None:
        """Nothing is open."""

    def _check_reachable(self) -> None:
        if self.unreachable:
            raise ClusterUnreachable(self.name, "it was made not to answer")

    def _is_lost(self, count: int) -> bool:
        return count > 0 and not self.unreachable

    def _start(self, job: Job) -> None:
        try:
            build_entrypoint(job, "python")
        except InputError as error:
            raise ClusterRefused(self.name, str(error)) from error
        statuses = self._jobs.get(job.submission)
        if statuses is not None:
            return
        if self.refusal:
            raise ClusterRefused(self.name, self.refusal)
        self.started_jobs.append(job)
        script = self._scripts.get(job.submission) or self.script
        self._jobs[job.submission] = [
            replace(status, metadata=dict(job.metadata)) for status in script
        ]
        self.logs.setdefault(job.submission, b"")
        self.on_start(job)

    def _advance(self, submission: str) -> JobStatus:
        statuses = self._jobs.get(submission)
        if not statuses:
            return JobStatus(JobState.ABSENT)
        return statuses.pop(0) if len(statuses) > 1 else statuses[0]
