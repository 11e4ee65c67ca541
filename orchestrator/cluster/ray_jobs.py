"""A real Ray cluster, through the Jobs API of its dashboard. Does not import Ray.

A submission may be repeated, because Ray stores a job under its submission id once and rejects the
second; the status of the job, not Ray's message, decides whether that was the reason. A response
that may not be Ray's own raises ClusterUnreachable and never means "absent".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from jobs.errors import InputError
from orchestrator.cluster.base import MAX_LOG_BYTES, Capacity, Job, JobState, JobStatus
from orchestrator.cluster.code_package import CodePackage
from orchestrator.cluster.dashboard_http import (
    MAX_RESPONSE_BYTES,
    RESPONSE_TIMEOUT_S,
    DashboardClient,
)
from orchestrator.cluster.entrypoint import build_entrypoint
from orchestrator.cluster.errors import ClusterRefused, ClusterUnreachable
from orchestrator.cluster.ray_responses import (
    DashboardResponse,
    parse_capacity,
    parse_log,
    parse_status,
    parse_statuses,
)

JOBS_PATH = "/api/jobs/"
SERVICE_KEY = "slora_service"
REFUSED_BY_AGENT = "Request failed with status code 400"
"""Message of Ray's head, with status 500, if its agent has rejected a job."""


class RayCluster:
    """A Ray cluster."""

    def __init__(
        self,
        name: str,
        address: str,
        *,
        token: Path | None = None,
        package: CodePackage | None = None,
        python: str = "python",
        timeout_s: float = RESPONSE_TIMEOUT_S,
        max_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        self.name = name
        self._package, self._python = package, python
        self._client = DashboardClient(
            name, address, token, timeout_s=timeout_s, max_bytes=max_bytes
        )

    def submit(self, job: Job) -> None:
        """Start the job unless it is started already. Raise ClusterRefused, ClusterUnreachable."""
        body = self._build_request(job)
        self._upload_package()
        response = self._client.request("POST", JOBS_PATH, json=body)
        if response.status == 200:
            self._check_accepted(response, job)
            return
        status = self.get_status(job.submission)
        if status.state is not JobState.ABSENT:
            self._check_owner(status, job)
            return
        if _is_refusal(response):
            raise ClusterRefused(self.name, _get_last_line(response.text))
        raise ClusterUnreachable(self.name, f"HTTP {response.status} in response to a submission")

    def get_status(self, submission: str) -> JobStatus:
        """Return the status of the job."""
        response = self._client.request("GET", JOBS_PATH + _quote_id(submission))
        if response.is_job_absent(submission):
            return JobStatus(JobState.ABSENT)
        status: JobStatus = self._client.parse(lambda: parse_status(response.parse_json()))
        return status

    def list_jobs(self) -> dict[str, JobStatus]:
        """Return the status of every job that was submitted through the Jobs API."""
        statuses: dict[str, JobStatus] = self._client.parse(
            lambda: parse_statuses(self._client.get_json(JOBS_PATH))
        )
        return statuses

    def stop(self, submission: str) -> None:
        """Request the end of the job: Ray sends SIGTERM, and SIGKILL some seconds later."""
        response = self._client.request("POST", f"{JOBS_PATH}{_quote_id(submission)}/stop")
        if not response.is_job_absent(submission):
            self._client.parse(response.parse_json)

    def read_log(self, submission: str, start: int = 0) -> bytes:
        """Return the output of the driver from a byte on.

        Ray sends a log only as a whole, so the end of a log above the response limit is missing.
        """
        response = self._client.request("GET", f"{JOBS_PATH}{_quote_id(submission)}/logs")
        if response.is_job_absent(submission):
            return b""
        log: bytes = self._client.parse(lambda: parse_log(response))
        return log[start : start + MAX_LOG_BYTES]

    def get_capacity(self) -> Capacity:
        """Return the resources of the living nodes."""
        nodes = self._client.get_json("/api/v0/nodes?limit=10000")
        summary = self._client.get_json("/nodes?view=summary")
        status = self._client.get_json("/api/cluster_status")
        capacity: Capacity = self._client.parse(lambda: parse_capacity(nodes, summary, status))
        return capacity

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _build_request(self, job: Job) -> dict[str, Any]:
        """Return the body of a request. Every user of the cluster can read it.

        It holds nothing of the service. A project's credentials are a session or a token that end
        with the run, where the service is configured so.
        """
        try:
            line = build_entrypoint(job, self._python)
        except InputError as error:
            raise ClusterRefused(self.name, str(error)) from error
        environment: dict[str, Any] = {}
        if self._package is not None:
            environment["working_dir"] = self._package.uri
        if job.environment:
            environment["env_vars"] = dict(job.environment)
        return {
            "entrypoint": line,
            "submission_id": job.submission,
            "metadata": dict(job.metadata),
            "runtime_env": environment,
        }

    def _upload_package(self) -> None:
        """Upload the package if it is missing. Asking for it also tells Ray that it is used."""
        if self._package is None:
            return
        path = f"/api/packages/gcs/{self._package.name}"
        response = self._client.request("GET", path)
        if response.status == 404 and self._package.name in response.text:
            response = self._client.request("PUT", path, content=self._package.content)
        if response.status != 200:
            raise ClusterUnreachable(
                self.name, f"HTTP {response.status} in response to the upload of its code"
            )

    def _check_accepted(self, response: DashboardResponse, job: Job) -> None:
        value = self._client.parse(response.parse_json)
        if not isinstance(value, dict) or value.get("submission_id") != job.submission:
            raise ClusterUnreachable(self.name, "its response to a submission names another job")

    def _check_owner(self, status: JobStatus, job: Job) -> None:
        if status.metadata.get(SERVICE_KEY) != job.metadata.get(SERVICE_KEY):
            raise ClusterRefused(self.name, f"the job {job.submission} belongs to another service")


def _quote_id(submission: str) -> str:
    """Quote an id as one segment of a path."""
    return quote(submission, safe="")


def _is_refusal(response: DashboardResponse) -> bool:
    """Return whether Ray itself rejects the job: a page with the status 400 may be a proxy's."""
    by_head = response.status == 400 and response.text.startswith("Traceback")
    return by_head or (response.status == 500 and REFUSED_BY_AGENT in response.text)


def _get_last_line(text: str) -> str:
    """Return the message of a traceback."""
    lines = [line for line in text.strip().splitlines() if line.strip(" .")]
    return lines[-1][:300] if lines else "Ray gave no reason"
