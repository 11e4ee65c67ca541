"""A response that may not be Ray's own makes the cluster unreachable, however it fails."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.base import MAX_LOG_BYTES, Job, JobState
from orchestrator.cluster.errors import ClusterRefused, ClusterUnreachable
from orchestrator.cluster.ray_jobs import RayCluster
from tests.orchestrator.cluster.server import (
    HTML,
    JSON,
    TEXT,
    ReceivedRequest,
    ScriptedDashboard,
    ScriptedResponse,
    make_json,
)

JOB = Job("chat-1-a1", "jobs.finetune", ("--run", "chat-1"), {"slora_service": "s"})
PAGE = b"<html><body>404 Not Found</body></html>"

Query = Callable[[RayCluster], Any]
QUERIES: dict[str, Query] = {
    "status": lambda cluster: cluster.get_status("chat-1-a1"),
    "jobs": lambda cluster: cluster.list_jobs(),
    "log": lambda cluster: cluster.read_log("chat-1-a1"),
    "stop": lambda cluster: cluster.stop("chat-1-a1"),
    "capacity": lambda cluster: cluster.get_capacity(),
    "submit": lambda cluster: cluster.submit(JOB),
}
RESPONSES = {
    "a proxy's page": ScriptedResponse(200, PAGE, HTML),
    "a page that says it is json": ScriptedResponse(200, PAGE, JSON),
    "a 404 of somebody else": ScriptedResponse(404, PAGE, HTML),
    "a 404 of Ray's for another path": ScriptedResponse(404, b"404: Not Found", TEXT),
    "a 404 for another job": ScriptedResponse(404, b"Job other-a1 does not exist", TEXT),
    "a bad gateway": ScriptedResponse(502, PAGE, HTML),
    "a server's error": ScriptedResponse(500, b"Traceback ...", TEXT),
    "a proxy's bad request": ScriptedResponse(400, PAGE, HTML),
    "no more right": ScriptedResponse(401, b"Unauthorized", TEXT),
    "another token": ScriptedResponse(403, b"Forbidden", TEXT),
    "a redirect": ScriptedResponse(302, b"", TEXT, {"Location": "/login"}),
    "JSON that breaks off": ScriptedResponse(200, b'[{"type": "SUBMISS', JSON),
    "a body that breaks off": ScriptedResponse(200, b"[]", JSON, claimed_length=100),
    "nothing at all": ScriptedResponse(silent=True),
    "a drip": ScriptedResponse(drips=True),
    "another shape": make_json({"jobs": []}),
    "a number": make_json(7),
    "deep JSON": ScriptedResponse(200, b"[" * 100_000, JSON),
    "no content": ScriptedResponse(204),
}


UNREACHABLE = "cluster far does not answer: .* Check its address"


def get_error(query: Query, cluster: RayCluster) -> str:
    """Return the message if the cluster is unreachable, otherwise an empty text."""
    try:
        query(cluster)
    except ClusterUnreachable as error:
        return str(error)
    return ""


@pytest.mark.parametrize("response", RESPONSES)
def test_a_response_that_is_not_rays_makes_it_unreachable(
    server: ScriptedDashboard, behind: RayCluster, response: str
):
    server.respond = lambda request: RESPONSES[response]
    for name, query in QUERIES.items():
        if name == "stop" and response in ("another shape", "a number"):
            continue  # any JSON will do: the next status shows whether the job has stopped
        assert re.match(UNREACHABLE, get_error(query, behind)), name


def test_a_stop_accepts_any_json_response(server: ScriptedDashboard, behind: RayCluster):
    server.respond = lambda request: make_json({"stopped": True})
    behind.stop("chat-1-a1")
    assert [(received.method, received.path) for received in server.received] == [
        ("POST", "/api/jobs/chat-1-a1/stop")
    ]


@pytest.mark.parametrize("query", QUERIES)
def test_a_closed_port_is_unreachable(query: str):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        cluster = RayCluster("far", f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.5)
        with pytest.raises(ClusterUnreachable, match="no connection"):
            QUERIES[query](cluster)
        cluster.close()


def test_only_rays_own_message_makes_a_job_absent(server: ScriptedDashboard, behind: RayCluster):
    server.respond = lambda request: ScriptedResponse(404, b"Job chat-1-a1 does not exist", TEXT)
    assert behind.get_status("chat-1-a1").state is JobState.ABSENT


def test_a_list_with_a_malformed_job_is_rejected(server: ScriptedDashboard, behind: RayCluster):
    good = {"type": "SUBMISSION", "submission_id": "a-a1", "status": "RUNNING"}
    driver = {"type": "DRIVER", "submission_id": None, "status": "RUNNING"}
    server.respond = lambda request: make_json([good, driver])
    assert {name: status.state for name, status in behind.list_jobs().items()} == {
        "a-a1": JobState.RUNNING
    }
    for broken in ({**good, "status": "DREAMING"}, {**good, "submission_id": None}, "x", {}):
        server.respond = lambda request, broken=broken: make_json([good, broken])  # type: ignore[misc]
        with pytest.raises(ClusterUnreachable):
            behind.list_jobs()


def test_a_token_is_read_at_each_request_and_never_printed(
    server: ScriptedDashboard, behind: RayCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    server.respond = lambda request: make_json([])
    behind.list_jobs()
    (tmp_path / "token").write_text("rotated-token")
    behind.list_jobs()
    assert [received.authorization for received in server.received] == [
        "Bearer secret-token",
        "Bearer rotated-token",
    ]
    server.respond = lambda request: ScriptedResponse(401)
    with pytest.raises(ClusterUnreachable) as refused:
        behind.list_jobs()
    output = f"{refused.value} {caplog.text}"
    assert "secret-token" not in output and "rotated-token" not in output


@pytest.mark.parametrize("content", [None, b"", b"two words", b"\xff\xfe", b"line\nline"])
def test_a_malformed_token_is_named_by_its_file(
    server: ScriptedDashboard, behind: RayCluster, tmp_path: Path, content: bytes | None
):
    file = tmp_path / "token"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(ClusterUnreachable, match=str(file)):
        behind.list_jobs()
    assert server.received == []


class RayModel:
    """A model of Ray's Jobs API, as far as these tests need it."""

    def __init__(self, *, refuses: ScriptedResponse | None = None) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.packages: set[str] = set()
        self.rejection = refuses
        self.drops_responses = False

    def __call__(self, request: ReceivedRequest) -> ScriptedResponse:
        name = request.path.rsplit("/", 1)[-1]
        if "/packages/" in request.path:
            return self._handle_package(request, name)
        if request.method == "POST":
            return self._submit(json.loads(request.body))
        if name in self.jobs:
            return make_json({"type": "SUBMISSION", "status": "RUNNING", **self.jobs[name]})
        return ScriptedResponse(404, f"Job {name} does not exist".encode(), TEXT)

    def _handle_package(self, request: ReceivedRequest, name: str) -> ScriptedResponse:
        if request.method == "PUT":
            self.packages.add(name)
        known = name in self.packages
        return (
            ScriptedResponse()
            if known
            else ScriptedResponse(404, f"Package gcs://{name} does not exist".encode(), TEXT)
        )

    def _submit(self, body: dict[str, Any]) -> ScriptedResponse:
        if self.rejection is not None:
            return self.rejection
        if body["submission_id"] in self.jobs:
            return ScriptedResponse(
                500, b"ValueError: Job with submission_id already exists.", TEXT
            )
        self.jobs[body["submission_id"]] = body
        return ScriptedResponse(silent=True) if self.drops_responses else make_json(body)


def test_a_submission_with_a_lost_response_is_recognized_later(
    server: ScriptedDashboard, behind: RayCluster
):
    server.respond = ray = RayModel()
    ray.drops_responses = True
    with pytest.raises(ClusterUnreachable):
        behind.submit(JOB)
    behind.submit(JOB)
    assert list(ray.jobs) == [JOB.submission]


def test_another_services_job_of_the_same_name_is_not_ours(
    server: ScriptedDashboard, behind: RayCluster
):
    server.respond = RayModel()
    behind.submit(Job(JOB.submission, JOB.module, JOB.arguments, {"slora_service": "other"}))
    with pytest.raises(ClusterRefused, match="belongs to another service"):
        behind.submit(JOB)


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(
            ScriptedResponse(400, b"Traceback:\nTypeError: no such thing\n", TEXT), id="by the head"
        ),
        pytest.param(
            ScriptedResponse(
                500, b"Request failed with status code 400: Traceback\nTypeError: no", TEXT
            ),
            id="by its agent",
        ),
    ],
)
def test_a_rejection_by_ray_is_a_rejection(
    server: ScriptedDashboard, behind: RayCluster, refusal: ScriptedResponse
):
    server.respond = RayModel(refuses=refusal)
    with pytest.raises(ClusterRefused, match="TypeError: no"):
        behind.submit(JOB)


def test_a_head_without_an_agent_is_not_a_rejection(server: ScriptedDashboard, behind: RayCluster):
    server.respond = RayModel(
        refuses=ScriptedResponse(500, b"No available agent to submit job", TEXT)
    )
    with pytest.raises(ClusterUnreachable):
        behind.submit(JOB)


def test_the_package_is_uploaded_once_and_named_in_every_submission(
    server: ScriptedDashboard, behind: RayCluster
):
    server.respond = ray = RayModel()
    behind.submit(JOB)
    behind.submit(Job("chat-2-a1", JOB.module, JOB.arguments, JOB.metadata))
    (name,) = ray.packages
    assert [request.method for request in server.received if "/packages/" in request.path] == [
        "GET",
        "PUT",
        "GET",
    ]
    environments = [job["runtime_env"] for job in ray.jobs.values()]
    assert environments == [{"working_dir": f"gcs://{name}"}] * 2


def test_the_variables_of_a_job_are_set_for_all_its_processes(
    server: ScriptedDashboard, behind: RayCluster
):
    server.respond = ray = RayModel()
    environment = {"SLORA_PLACES": "{}"}
    behind.submit(Job("chat-3-a1", JOB.module, JOB.arguments, JOB.metadata, environment))
    behind.submit(JOB)
    variables = [job["runtime_env"].get("env_vars") for job in ray.jobs.values()]
    assert variables == [environment, None]


def test_a_submission_contains_no_secret(server: ScriptedDashboard, behind: RayCluster):
    server.respond = ray = RayModel()
    behind.submit(JOB)
    body = ray.jobs[JOB.submission]
    assert set(body) == {"entrypoint", "submission_id", "metadata", "runtime_env"}
    assert body["entrypoint"] == "python -m jobs.finetune --run chat-1"
    assert "secret" not in json.dumps(body)


def test_the_environment_of_a_job_is_beside_its_package(
    server: ScriptedDashboard, behind: RayCluster
):
    server.respond = ray = RayModel()
    behind.submit(replace(JOB, environment={"SLORA_PROJECT": "lab", "AWS_PROFILE": ""}))
    environment = ray.jobs[JOB.submission]["runtime_env"]
    assert environment["env_vars"] == {"SLORA_PROJECT": "lab", "AWS_PROFILE": ""}
    assert "working_dir" in environment


def test_a_long_log_is_read_in_parts(server: ScriptedDashboard, behind: RayCluster):
    server.respond = lambda request: make_json({"logs": "ä" * MAX_LOG_BYTES})
    first = behind.read_log("chat-1-a1")
    assert len(first) == MAX_LOG_BYTES and first == ("ä" * MAX_LOG_BYTES).encode()[:MAX_LOG_BYTES]
    assert behind.read_log("chat-1-a1", 2 * MAX_LOG_BYTES - 4) == "ää".encode()


def test_a_log_above_the_limit_is_truncated(server: ScriptedDashboard):
    text = 'ab\n\U0001f600ä"\\' * 20
    server.respond = lambda request: make_json({"logs": text})
    for max_bytes in range(30, 60):
        cluster = RayCluster("far", server.url, max_bytes=max_bytes)
        log = cluster.read_log("chat-1-a1")
        assert text.encode().startswith(log) and log.startswith(b"ab\n"), max_bytes
        cluster.close()


def test_a_cluster_without_nodes_has_no_capacity_yet(server: ScriptedDashboard, behind: RayCluster):
    server.respond = lambda request: make_json({"data": {"result": {"result": []}}})
    with pytest.raises(ClusterUnreachable, match="no node is alive"):
        behind.get_capacity()


def test_only_living_nodes_are_counted(server: ScriptedDashboard, behind: RayCluster):
    def respond(request: ReceivedRequest) -> ScriptedResponse:
        if request.path.startswith("/api/v0/nodes"):
            nodes = [
                {"state": "ALIVE", "resources_total": {"CPU": 4.0, "GPU": 1.0}},
                {"state": "ALIVE", "resources_total": {"CPU": 8.0}},
                {"state": "DEAD", "resources_total": {"CPU": 64.0}},
            ]
            return make_json({"data": {"result": {"result": nodes}}})
        if request.path.startswith("/nodes"):
            summary = [
                {"raylet": {"state": "ALIVE"}, "mem": [1000, 10]},
                {"raylet": {"state": "ALIVE"}},
                {"raylet": {"state": "DEAD"}, "mem": [9000, 10]},
            ]
            return make_json({"data": {"summary": summary}})
        usage = {"loadMetricsReport": {"usage": {"CPU": [3.0, 12.0]}}}
        return make_json({"data": {"clusterStatus": usage}})

    server.respond = respond
    capacity = behind.get_capacity()
    assert (capacity.cpus, capacity.free_cpus, capacity.gpus, capacity.free_gpus) == (12, 9, 1, 1)
    assert (capacity.nodes, capacity.node_memory) == (2, 1000)
