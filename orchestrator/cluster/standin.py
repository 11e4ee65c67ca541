"""The stand-in for a cluster: plays the sights that it is given, and fails as real ones do.

It is whole enough to run a service on: what is submitted is pending, then runs, then ends well,
one sight further at every look, unless a script says otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from jobs.errors import InputError
from orchestrator.cluster.door import LONGEST_LOG, Capacity, Job, Seen, Sight
from orchestrator.cluster.entrypoint import entrypoint_of
from orchestrator.cluster.errors import ClusterRefused, ClusterUnreachable

USUAL = (Sight(Seen.PENDING), Sight(Seen.RUNNING), Sight(Seen.SUCCEEDED, exit_code=0))
OVER = (Seen.SUCCEEDED, Seen.FAILED, Seen.STOPPED)


class FakeCluster:
    """Remembers what was submitted, and answers from scripts."""

    def __init__(self, name: str = "default", *script: Sight) -> None:
        self.name = name
        self.script = script or USUAL
        """For jobs that have none of their own."""
        self.started: list[Job] = []
        """Every job that began, in order: one that is here twice was run twice."""
        self.asked: list[str] = []
        """Every submission that was sent, arrived or not."""
        self.stopped: list[str] = []
        self.logs: dict[str, bytes] = {}
        self.has = Capacity(
            cpus=64, gpus=8, free_cpus=64, free_gpus=8, nodes=4, node_memory=256 << 30
        )
        self.unreachable = False
        self.refuses = ""
        """Why it takes no job, where it takes none."""
        self.swallowed_answers = 0
        """Of so many submissions to come the job starts, and the answer is lost."""
        self.lost_requests = 0
        """So many submissions to come never arrive."""
        self.on_start: Callable[[Job], None] = lambda job: None
        """What a job does, besides being seen."""
        self.on_look: Callable[[], None] = lambda: None
        """What happens between a look at all jobs and its answer's arrival."""
        self._scripts: dict[str, list[Sight]] = {}
        self._jobs: dict[str, list[Sight]] = {}
        self._lock = threading.RLock()

    def plays(self, submission: str, *script: Sight) -> None:
        """What is seen of this job from now on; it stays at the last."""
        with self._lock:
            self._scripts[submission] = list(script)
            if submission in self._jobs:
                self._jobs[submission] = list(script)

    def has_job(self, job: Job, *script: Sight) -> None:
        """A job that somebody else submitted."""
        with self._lock:
            told = script or self.script
            self._jobs[job.submission] = [replace(one, metadata=dict(job.metadata)) for one in told]

    def lose_all(self) -> None:
        """As a head that was killed and came back: it answers, and knows nothing."""
        with self._lock:
            self._jobs.clear()

    def submit(self, job: Job) -> None:
        """Starts it once."""
        with self._lock:
            self.asked.append(job.submission)
            if self._takes(self.lost_requests):
                self.lost_requests -= 1
                raise ClusterUnreachable(self.name, "the request was lost")
            self._answer()
            self._start(job)
            if self._takes(self.swallowed_answers):
                self.swallowed_answers -= 1
                raise ClusterUnreachable(self.name, "the answer was lost")

    def look(self, submission: str) -> Sight:
        """The job now, one sight further."""
        with self._lock:
            self._answer()
            return self._next(submission)

    def jobs(self) -> dict[str, Sight]:
        """Every job, each one sight further."""
        with self._lock:
            self._answer()
            found = {submission: self._next(submission) for submission in list(self._jobs)}
            self.on_look()
            return found

    def stop(self, submission: str) -> None:
        """Ends it at once."""
        with self._lock:
            self._answer()
            self.stopped.append(submission)
            there = self._jobs.get(submission)
            if there and there[0].seen not in OVER:
                self._jobs[submission] = [replace(there[0], seen=Seen.STOPPED)]

    def log(self, submission: str, start: int = 0) -> bytes:
        """What a test put there."""
        with self._lock:
            self._answer()
            return self.logs.get(submission, b"")[start : start + LONGEST_LOG]

    def capacity(self) -> Capacity:
        """What a test says it has."""
        with self._lock:
            self._answer()
            return self.has

    def close(self) -> None:
        """Nothing is open."""

    def _answer(self) -> None:
        if self.unreachable:
            raise ClusterUnreachable(self.name, "it was made not to answer")

    def _takes(self, left: int) -> bool:
        return left > 0 and not self.unreachable

    def _start(self, job: Job) -> None:
        try:
            entrypoint_of(job, "python")
        except InputError as wrong:
            raise ClusterRefused(self.name, str(wrong)) from wrong
        there = self._jobs.get(job.submission)
        if there is not None:
            return
        if self.refuses:
            raise ClusterRefused(self.name, self.refuses)
        self.started.append(job)
        script = self._scripts.get(job.submission) or self.script
        self._jobs[job.submission] = [replace(one, metadata=dict(job.metadata)) for one in script]
        self.logs.setdefault(job.submission, b"")
        self.on_start(job)

    def _next(self, submission: str) -> Sight:
        there = self._jobs.get(submission)
        if not there:
            return Sight(Seen.ABSENT)
        return there.pop(0) if len(there) > 1 else there[0]
