"""Responses of Ray's dashboard as values. A response that may not be Ray's own is rejected.

The page of a proxy, a starting head or a truncated body must never look like a cluster without
jobs: a run would be started a second time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster.base import Capacity, JobState, JobStatus

STATUSES = {
    "PENDING": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "SUCCEEDED": JobState.SUCCEEDED,
    "FAILED": JobState.FAILED,
    "STOPPED": JobState.STOPPED,
}
MAX_ESCAPE_CHARS = 12
"""Characters of JSON per character of text: at most two escapes of six."""


class InvalidRayResponse(Exception):
    """The response is not one of Ray's."""


@dataclass(frozen=True)
class DashboardResponse:
    """An HTTP response, read to its end or up to a limit."""

    status: int
    content_type: str
    body: bytes
    is_complete: bool = True

    @property
    def text(self) -> str:
        """Return the body as text."""
        return self.body.decode(errors="replace")

    def parse_json(self) -> Any:
        """Return the body as JSON. Raise InvalidRayResponse."""
        if self.status != 200:
            raise InvalidRayResponse(f"HTTP {self.status}")
        if "json" not in self.content_type or not self.is_complete:
            raise InvalidRayResponse(f"HTTP 200 with {self.content_type[:60]!a} instead of JSON")
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise InvalidRayResponse("HTTP 200 with invalid JSON") from error

    def is_job_absent(self, submission: str) -> bool:
        """Return whether this is Ray's own message for an unknown job: no other 404 counts."""
        return self.status == 404 and self.text.strip() == f"Job {submission} does not exist"


def parse_statuses(value: Any) -> dict[str, JobStatus]:
    """Return the status of each job in a list. Raise InvalidRayResponse."""
    if not isinstance(value, list):
        raise InvalidRayResponse("the list of jobs is not a list")
    statuses = {}
    for job in value:
        # Drivers that were not submitted through the Jobs API have no submission id.
        if not isinstance(job, dict) or job.get("type") not in ("SUBMISSION", "DRIVER"):
            raise InvalidRayResponse("the list of jobs contains an unknown type")
        if job["type"] == "SUBMISSION":
            statuses[_get_text(job, "submission_id")] = parse_status(job)
    return statuses


def parse_status(value: Any) -> JobStatus:
    """Return the status of a job. Raise InvalidRayResponse."""
    if not isinstance(value, dict):
        raise InvalidRayResponse("a job is not an object")
    state = STATUSES.get(str(value.get("status")))
    if state is None:
        raise InvalidRayResponse(f"a job has the status {str(value.get('status'))[:40]!a}")
    exit_code, metadata = value.get("driver_exit_code"), value.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InvalidRayResponse("the metadata of a job is not an object")
    return JobStatus(
        state=state,
        exit_code=exit_code if isinstance(exit_code, int) else None,
        message=str(value.get("message") or ""),
        started_at=_to_seconds(value.get("start_time")),
        ended_at=_to_seconds(value.get("end_time")),
        metadata={str(key): str(text) for key, text in metadata.items()},
    )


def parse_log(response: DashboardResponse) -> bytes:
    """Return the bytes of a log, as far as its response was read. Raise InvalidRayResponse."""
    value = response.parse_json() if response.is_complete else _repair_log(response.text)
    if not isinstance(value, dict) or not isinstance(value.get("logs"), str):
        raise InvalidRayResponse("a log is not text")
    return str(value["logs"]).encode(errors="replace")


def parse_capacity(nodes: Any, summary: Any, status: Any) -> Capacity:
    """Return the capacity by Ray's nodes, summary and cluster status. Raise InvalidRayResponse."""
    node_list = _get_path(nodes, "data", "result", "result")
    if not isinstance(node_list, list):
        raise InvalidRayResponse("the list of nodes is not a list")
    alive = [node for node in node_list if isinstance(node, dict) and node.get("state") == "ALIVE"]
    if not alive:
        # The head has just started: a running cluster has at least the node of the head.
        raise InvalidRayResponse("no node is alive yet")
    cpus, gpus = (_sum_resource(alive, name) for name in ("CPU", "GPU"))
    return Capacity(
        cpus=cpus,
        gpus=gpus,
        free_cpus=max(0.0, cpus - _get_usage(status, "CPU")),
        free_gpus=max(0.0, gpus - _get_usage(status, "GPU")),
        nodes=len(alive),
        node_memory=_find_largest_memory(summary),
    )


def _repair_log(text: str) -> Any:
    """Parse a truncated log, cut back to the end of a character."""
    for cut in range(MAX_ESCAPE_CHARS):
        try:
            value = json.loads(text[: len(text) - cut] + '"}')
        except ValueError:
            continue
        logs = value.get("logs") if isinstance(value, dict) else None
        if not (isinstance(logs, str) and logs and "\ud800" <= logs[-1] <= "\udfff"):
            return value
    raise InvalidRayResponse("a log is truncated within a character")


def _get_text(value: Mapping[str, Any], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text:
        raise InvalidRayResponse(f"a job has no {key}")
    return text


def _to_seconds(milliseconds: Any) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) else None


def _sum_resource(nodes: list[Any], name: str) -> float:
    return sum(_to_float(_get_path(node, "resources_total", name)) for node in nodes)


def _get_usage(status: Any, name: str) -> float:
    """Return the used amount, or 0 if unknown: decisions depend on the total only."""
    usage = _get_path(status, "data", "clusterStatus", "loadMetricsReport", "usage", name)
    return _to_float(usage[0]) if isinstance(usage, list) and usage else 0.0


def _find_largest_memory(summary: Any) -> int | None:
    """Return the memory of the largest living node; agents report it seconds after their start."""
    nodes = _get_path(summary, "data", "summary")
    sizes = [_get_memory(node) for node in nodes] if isinstance(nodes, list) else []
    return max(sizes, default=0) or None


def _get_memory(node: Any) -> int:
    memory = _get_path(node, "mem")
    if _get_path(node, "raylet", "state") != "ALIVE" or not isinstance(memory, list) or not memory:
        return 0
    return int(_to_float(memory[0]))


def _to_float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _get_path(value: Any, *path: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
