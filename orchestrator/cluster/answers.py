"""What Ray's dashboard answers, read as values. Whatever is not surely Ray's own is no answer.

A proxy's page, a head that is starting or a body that broke off must never look like a cluster
without jobs: a run would be started a second time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster.door import Capacity, Seen, Sight

STATUSES = {
    "PENDING": Seen.PENDING,
    "RUNNING": Seen.RUNNING,
    "SUCCEEDED": Seen.SUCCEEDED,
    "FAILED": Seen.FAILED,
    "STOPPED": Seen.STOPPED,
}
LONGEST_ESCAPE = 12
"""Characters of JSON that one character of text may take: two halves of six."""


class NotRay(Exception):
    """The answer is not one that Ray gives."""


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, read to its end or to a bound."""

    status: int
    kind: str
    """Its content type."""
    body: bytes
    whole: bool = True

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode(errors="replace")

    def value(self) -> Any:
        """The body as JSON. Raises NotRay."""
        if self.status != 200:
            raise NotRay(f"HTTP {self.status}")
        if "json" not in self.kind or not self.whole:
            raise NotRay(f"HTTP 200 with {self.kind[:60]!a} where JSON was asked for")
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as wrong:
            raise NotRay("HTTP 200 with broken JSON") from wrong

    def says_absent(self, submission: str) -> bool:
        """Whether this is Ray's own word that it does not know the job: no other 404 counts."""
        return self.status == 404 and self.text.strip() == f"Job {submission} does not exist"


def sights_of(value: Any) -> dict[str, Sight]:
    """The list of jobs. Raises NotRay."""
    if not isinstance(value, list):
        raise NotRay("the list of jobs is no list")
    found = {}
    for one in value:
        # Drivers that nobody submitted through the Jobs API have no id of ours.
        if not isinstance(one, dict) or one.get("type") not in ("SUBMISSION", "DRIVER"):
            raise NotRay("the list of jobs holds something else")
        if one["type"] == "SUBMISSION":
            found[_text(one, "submission_id")] = sight_of(one)
    return found


def sight_of(value: Any) -> Sight:
    """One job. Raises NotRay."""
    if not isinstance(value, dict):
        raise NotRay("a job is no object")
    seen = STATUSES.get(str(value.get("status")))
    if seen is None:
        raise NotRay(f"a job is {str(value.get('status'))[:40]!a}")
    code, about = value.get("driver_exit_code"), value.get("metadata") or {}
    if not isinstance(about, dict):
        raise NotRay("a job's metadata are no object")
    return Sight(
        seen=seen,
        exit_code=code if isinstance(code, int) else None,
        message=str(value.get("message") or ""),
        started_at=_seconds(value.get("start_time")),
        ended_at=_seconds(value.get("end_time")),
        metadata={str(key): str(one) for key, one in about.items()},
    )


def log_of(answer: Answer) -> bytes:
    """The log's bytes; of a body that was cut at the bound, those that were read. Raises NotRay."""
    value = answer.value() if answer.whole else _closed(answer.text)
    if not isinstance(value, dict) or not isinstance(value.get("logs"), str):
        raise NotRay("a log is no text")
    return str(value["logs"]).encode(errors="replace")


def capacity_of(nodes: Any, summary: Any, status: Any) -> Capacity:
    """From the state API's nodes, the dashboard's summary and the autoscaler's. Raises NotRay."""
    listed = _at(nodes, "data", "result", "result")
    if not isinstance(listed, list):
        raise NotRay("the list of nodes is no list")
    alive = [one for one in listed if isinstance(one, dict) and one.get("state") == "ALIVE"]
    if not alive:
        # A head that has just started; a cluster that answers has at least the head's own node.
        raise NotRay("no node is alive yet")
    cpus, gpus = (_sum(alive, name) for name in ("CPU", "GPU"))
    return Capacity(
        cpus=cpus,
        gpus=gpus,
        free_cpus=max(0.0, cpus - _used(status, "CPU")),
        free_gpus=max(0.0, gpus - _used(status, "GPU")),
        nodes=len(alive),
        node_memory=_largest(summary),
    )


def _closed(text: str) -> Any:
    """A log whose end is missing: cut back to where a character of it ends."""
    for cut in range(LONGEST_ESCAPE):
        try:
            value = json.loads(text[: len(text) - cut] + '"}')
        except ValueError:
            continue
        logs = value.get("logs") if isinstance(value, dict) else None
        if not (isinstance(logs, str) and logs and "\ud800" <= logs[-1] <= "\udfff"):
            return value
    raise NotRay("a log that breaks off")


def _text(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    if not isinstance(found, str) or not found:
        raise NotRay(f"a job has no {key}")
    return found


def _seconds(milliseconds: Any) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) else None


def _sum(nodes: list[Any], name: str) -> float:
    return sum(_number(_at(node, "resources_total", name)) for node in nodes)


def _used(status: Any, name: str) -> float:
    """Unknown counts as nothing: only the whole decides anything."""
    usage = _at(status, "data", "clusterStatus", "loadMetricsReport", "usage", name)
    return _number(usage[0]) if isinstance(usage, list) and usage else 0.0


def _largest(summary: Any) -> int | None:
    """Bytes of the largest living node; the agents tell them some seconds after a node starts."""
    nodes = _at(summary, "data", "summary")
    found = [_memory(node) for node in nodes] if isinstance(nodes, list) else []
    return max(found, default=0) or None


def _memory(node: Any) -> int:
    told = _at(node, "mem")
    if _at(node, "raylet", "state") != "ALIVE" or not isinstance(told, list) or not told:
        return 0
    return int(_number(told[0]))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _at(value: Any, *path: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
