"""A fake cluster: plays scripts of job statuses, and fails as real clusters do.

A service can run on it. Unless a script says otherwise, a submitted job is pending, then running,
then successful, and advances by one status at every request.
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
    """Records submissions, and answers from scripts."""

    def __init__(self, name: str = "default", *script: JobStatus) -> None:
        self.name = name
        self.script = script or DEFAULT_SCRIPT
        """Script of the jobs without one of their own."""
        self.started_jobs: list[Job] = []
        """Every job that started, in order: a job that is listed twice ran twice."""
        self.submitted_ids: list[str] = []
        """Ids of all submissions that were sent, whether they arrived or not."""
        self.stopped_ids: list[str] = []
        self.logs: dict[str, bytes] = {}
        self.cluster_capacity = Capacity(
            cpus=64, gpus=8, free_cpus=64, free_gpus=8, nodes=4, node_memory=256 << 30
        )
        self.unreachable = False
        self.refusal = ""
        """Reason why every job is rejected; empty accepts them."""
        self.lost_responses = 0
        """Number of submissions whose job starts although the response is lost."""
        self.lost_requests = 0
        """Number of submissions that never arrive."""
        self.on_start: Callable[[Job], None] = lambda job: None
        """Called when a job starts."""
        self.on_list: Callable[[], None] = lambda: None
        """Called between a listing of all jobs and the arrival of its response."""
        self._scripts: dict[str, list[JobStatus]] = {}
        self._jobs: dict[str, list[JobStatus]] = {}
        self._lock = threading.RLock()

    def play(self, submission: str, *script: JobStatus) -> None:
        """Set the statuses of a job from now on. The last one stays."""
        with self._lock:
            self._scripts[submission] = list(script)
            if submission in self._jobs:
                self._jobs[submission] = list(script)

    def add_foreign_job(self, job: Job, *script: JobStatus) -> None:
        """Add a job that somebody else submitted."""
        with self._lock:
            statuses = script or self.script
            self._jobs[job.submission] = [
                replace(status, metadata=dict(job.metadata)) for status in statuses
            ]

    def forget_all(self) -> None:
        """Forget all jobs, as a restarted head does."""
        with self._lock:
            self._jobs.clear()

    def submit(self, job: Job) -> None:
        """Start the job once."""
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
        """Return the status of the job, and advance it."""
        with self._lock:
            self._check_reachable()
            return self._advance(submission)

    def list_jobs(self) -> dict[str, JobStatus]:
        """Return the status of every job, and advance each."""
        with self._lock:
            self._check_reachable()
            statuses = {submission: self._advance(submission) for submission in list(self._jobs)}
            self.on_list()
            return statuses

    def stop(self, submission: str) -> None:
        """End the job at once."""
        with self._lock:
            self._check_reachable()
            self.stopped_ids.append(submission)
            statuses = self._jobs.get(submission)
            if statuses and statuses[0].state not in FINAL_STATES:
                self._jobs[submission] = [replace(statuses[0], state=JobState.STOPPED)]

    def read_log(self, submission: str, start: int = 0) -> bytes:
        """Return the log that a test has set."""
        with self._lock:
            self._check_reachable()
            return self.logs.get(submission, b"")[start : start + MAX_LOG_BYTES]

    def get_capacity(self) -> Capacity:
        """Return the capacity that a test has set."""
        with self._lock:
            self._check_reachable()
            return self.cluster_capacity

    def close(self) -> None:
        """Do nothing: there is no connection."""

    def _check_reachable(self) -> None:
        if self.unreachable:
            raise ClusterUnreachable(self.name, "it is set to be unreachable")

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
