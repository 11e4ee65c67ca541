"""A real Ray cluster, by the Jobs API at its dashboard's address. Loads no Ray.

To submit may be repeated, because Ray writes a job under its submission id once and refuses the
second; whether it refused for that, a look tells and not its words alone. A question whose answer
is not surely Ray's own raises ClusterUnreachable and is never taken for "absent".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from jobs.errors import InputError
from orchestrator.cluster.answers import Answer, capacity_of, log_of, sight_of, sights_of
from orchestrator.cluster.code import Code
from orchestrator.cluster.door import LONGEST_LOG, Capacity, Job, Seen, Sight
from orchestrator.cluster.entrypoint import entrypoint_of
from orchestrator.cluster.errors import ClusterRefused, ClusterUnreachable
from orchestrator.cluster.wire import LARGEST, PATIENCE_S, Wire

JOBS = "/api/jobs/"
SERVICE = "slora_service"
REFUSED_BY_AGENT = "Request failed with status code 400"
"""How Ray's head, with status 500, hands on that its agent refused."""


class RayCluster:
    """One cluster."""

    def __init__(
        self,
        name: str,
        address: str,
        *,
        token: Path | None = None,
        code: Code | None = None,
        python: str = "python",
        patience_s: float = PATIENCE_S,
        largest: int = LARGEST,
    ) -> None:
        self.name = name
        self._code, self._python = code, python
        self._wire = Wire(name, address, token, patience_s=patience_s, largest=largest)

    def submit(self, job: Job) -> None:
        """Starts it, or finds it started. Raises ClusterRefused, ClusterUnreachable."""
        body = self._body(job)
        self._send_code()
        answer = self._wire.ask("POST", JOBS, json=body)
        if answer.status == 200:
            self._check_taken(answer, job)
            return
        there = self.look(job.submission)
        if there.seen is not Seen.ABSENT:
            self._check_ours(there, job)
            return
        if _refusal(answer):
            raise ClusterRefused(self.name, _last_line(answer.text))
        raise ClusterUnreachable(self.name, f"HTTP {answer.status} to a submission")

    def look(self, submission: str) -> Sight:
        """The job now."""
        answer = self._wire.ask("GET", JOBS + _part(submission))
        if answer.says_absent(submission):
            return Sight(Seen.ABSENT)
        found: Sight = self._wire.read(lambda: sight_of(answer.value()))
        return found

    def jobs(self) -> dict[str, Sight]:
        """Every job that came by the Jobs API."""
        found: dict[str, Sight] = self._wire.read(lambda: sights_of(self._wire.value(JOBS)))
        return found

    def stop(self, submission: str) -> None:
        """Asks it to end: SIGTERM, and SIGKILL some seconds later."""
        answer = self._wire.ask("POST", f"{JOBS}{_part(submission)}/stop")
        if not answer.says_absent(submission):
            self._wire.read(answer.value)

    def log(self, submission: str, start: int = 0) -> bytes:
        """What the driver wrote, from a byte on.

        Ray gives the whole log or nothing, so of one above the wire's bound the rest is not told.
        """
        answer = self._wire.ask("GET", f"{JOBS}{_part(submission)}/logs")
        if answer.says_absent(submission):
            return b""
        found: bytes = self._wire.read(lambda: log_of(answer))
        return found[start : start + LONGEST_LOG]

    def capacity(self) -> Capacity:
        """What its living nodes have."""
        nodes = self._wire.value("/api/v0/nodes?limit=10000")
        summary = self._wire.value("/nodes?view=summary")
        status = self._wire.value("/api/cluster_status")
        found: Capacity = self._wire.read(lambda: capacity_of(nodes, summary, status))
        return found

    def close(self) -> None:
        """Ends the connections."""
        self._wire.close()

    def _body(self, job: Job) -> dict[str, Any]:
        """All of it can be read by whoever may read the cluster's jobs, so no secret is in it."""
        try:
            line = entrypoint_of(job, self._python)
        except InputError as wrong:
            raise ClusterRefused(self.name, str(wrong)) from wrong
        environment = {} if self._code is None else {"working_dir": self._code.uri}
        return {
            "entrypoint": line,
            "submission_id": job.submission,
            "metadata": dict(job.metadata),
            "runtime_env": environment,
        }

    def _send_code(self) -> None:
        """The package is there afterwards, and Ray was told that it will be used."""
        if self._code is None:
            return
        path = f"/api/packages/gcs/{self._code.name}"
        answer = self._wire.ask("GET", path)
        if answer.status == 404 and self._code.name in answer.text:
            answer = self._wire.ask("PUT", path, content=self._code.content)
        if answer.status != 200:
            raise ClusterUnreachable(self.name, f"HTTP {answer.status} to its packages")

    def _check_taken(self, answer: Answer, job: Job) -> None:
        value = self._wire.read(answer.value)
        if not isinstance(value, dict) or value.get("submission_id") != job.submission:
            raise ClusterUnreachable(self.name, "its answer to a submission names another job")

    def _check_ours(self, there: Sight, job: Job) -> None:
        if there.metadata.get(SERVICE) != job.metadata.get(SERVICE):
            raise ClusterRefused(self.name, f"somebody else's job is called {job.submission}")


def _part(submission: str) -> str:
    """As one part of a path, whatever it is."""
    return quote(submission, safe="")


def _refusal(answer: Answer) -> bool:
    """Whether Ray itself will not have the job: a page with the status 400 may be a proxy's."""
    by_head = answer.status == 400 and answer.text.startswith("Traceback")
    return by_head or (answer.status == 500 and REFUSED_BY_AGENT in answer.text)


def _last_line(text: str) -> str:
    """Of a traceback, what it says."""
    lines = [line for line in text.strip().splitlines() if line.strip(" .")]
    return lines[-1][:300] if lines else "it does not say why"
