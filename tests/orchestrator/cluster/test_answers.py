"""What is not surely Ray's own answer is no answer: in every way a real connection can fail."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.door import LONGEST_LOG, Job, Seen
from orchestrator.cluster.errors import ClusterRefused, ClusterUnreachable
from orchestrator.cluster.ray_jobs import RayCluster
from tests.orchestrator.cluster.server import HTML, JSON, TEXT, Asked, Says, Server, told

JOB = Job("chat-1-a1", "jobs.finetune", ("--run", "chat-1"), {"slora_service": "s"})
PAGE = b"<html><body>404 Not Found</body></html>"

Question = Callable[[RayCluster], Any]
QUESTIONS: dict[str, Question] = {
    "look": lambda cluster: cluster.look("chat-1-a1"),
    "jobs": lambda cluster: cluster.jobs(),
    "log": lambda cluster: cluster.log("chat-1-a1"),
    "stop": lambda cluster: cluster.stop("chat-1-a1"),
    "capacity": lambda cluster: cluster.capacity(),
    "submit": lambda cluster: cluster.submit(JOB),
}
ANSWERS = {
    "a proxy's page": Says(200, PAGE, HTML),
    "a page that says it is json": Says(200, PAGE, JSON),
    "a 404 of somebody else": Says(404, PAGE, HTML),
    "a 404 of Ray's for another path": Says(404, b"404: Not Found", TEXT),
    "a 404 for another job": Says(404, b"Job other-a1 does not exist", TEXT),
    "a bad gateway": Says(502, PAGE, HTML),
    "a server's error": Says(500, b"Traceback ...", TEXT),
    "a proxy's bad request": Says(400, PAGE, HTML),
    "no more right": Says(401, b"Unauthorized", TEXT),
    "another token": Says(403, b"Forbidden", TEXT),
    "a redirect": Says(302, b"", TEXT, {"Location": "/login"}),
    "JSON that breaks off": Says(200, b'[{"type": "SUBMISS', JSON),
    "a body that breaks off": Says(200, b"[]", JSON, claims=100),
    "nothing at all": Says(never=True),
    "a drip": Says(drips=True),
    "another shape": told({"jobs": []}),
    "a number": told(7),
    "deep JSON": Says(200, b"[" * 100_000, JSON),
    "no content": Says(204),
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_what_is_not_rays_own_is_no_answer(
    server: Server, behind: RayCluster, question: str, answer: str
):
    server.answer = lambda asked: ANSWERS[answer]
    if question == "stop" and answer in ("another shape", "a number"):
        return  # whatever it answers well, the next look tells
    with pytest.raises(ClusterUnreachable, match=r"far does not answer: .* Check its address"):
        QUESTIONS[question](behind)


def test_a_stop_needs_an_answer_in_json_and_no_more(server: Server, behind: RayCluster):
    server.answer = lambda asked: told({"stopped": True})
    behind.stop("chat-1-a1")
    assert [(one.method, one.path) for one in server.asked] == [
        ("POST", "/api/jobs/chat-1-a1/stop")
    ]


@pytest.mark.parametrize("question", QUESTIONS)
def test_nobody_at_the_address_is_no_answer(question: str):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        cluster = RayCluster("far", f"http://127.0.0.1:{taken.getsockname()[1]}", patience_s=0.5)
        with pytest.raises(ClusterUnreachable, match="no connection"):
            QUESTIONS[question](cluster)
        cluster.close()


def test_only_rays_own_word_makes_a_job_absent(server: Server, behind: RayCluster):
    server.answer = lambda asked: Says(404, b"Job chat-1-a1 does not exist", TEXT)
    assert behind.look("chat-1-a1").seen is Seen.ABSENT


def test_a_list_with_one_broken_job_tells_of_none(server: Server, behind: RayCluster):
    good = {"type": "SUBMISSION", "submission_id": "a-a1", "status": "RUNNING"}
    driver = {"type": "DRIVER", "submission_id": None, "status": "RUNNING"}
    server.answer = lambda asked: told([good, driver])
    assert {name: one.seen for name, one in behind.jobs().items()} == {"a-a1": Seen.RUNNING}
    for broken in ({**good, "status": "DREAMING"}, {**good, "submission_id": None}, "x", {}):
        server.answer = lambda asked, broken=broken: told([good, broken])  # type: ignore[misc]
        with pytest.raises(ClusterUnreachable):
            behind.jobs()


def test_a_token_is_read_at_each_question_and_never_told(
    server: Server, behind: RayCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    server.answer = lambda asked: told([])
    behind.jobs()
    (tmp_path / "token").write_text("rotated-token")
    behind.jobs()
    assert [one.authorization for one in server.asked] == [
        "Bearer secret-token",
        "Bearer rotated-token",
    ]
    server.answer = lambda asked: Says(401)
    with pytest.raises(ClusterUnreachable) as refused:
        behind.jobs()
    said = f"{refused.value} {caplog.text}"
    assert "secret-token" not in said and "rotated-token" not in said


@pytest.mark.parametrize("content", [None, b"", b"two words", b"\xff\xfe", b"line\nline"])
def test_a_token_that_can_not_be_one_is_named_by_its_file(
    server: Server, behind: RayCluster, tmp_path: Path, content: bytes | None
):
    file = tmp_path / "token"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(ClusterUnreachable, match=str(file)):
        behind.jobs()
    assert server.asked == []


class Ray:
    """As Ray answers submissions, so far as it matters here."""

    def __init__(self, *, refuses: Says | None = None) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.packages: set[str] = set()
        self.refuses = refuses
        self.loses_answers = False

    def __call__(self, asked: Asked) -> Says:
        name = asked.path.rsplit("/", 1)[-1]
        if "/packages/" in asked.path:
            return self._package(asked, name)
        if asked.method == "POST":
            return self._submit(json.loads(asked.body))
        if name in self.jobs:
            return told({"type": "SUBMISSION", "status": "RUNNING", **self.jobs[name]})
        return Says(404, f"Job {name} does not exist".encode(), TEXT)

    def _package(self, asked: Asked, name: str) -> Says:
        if asked.method == "PUT":
            self.packages.add(name)
        there = name in self.packages
        return Says() if there else Says(404, f"Package gcs://{name} does not exist".encode(), TEXT)

    def _submit(self, body: dict[str, Any]) -> Says:
        if self.refuses is not None:
            return self.refuses
        if body["submission_id"] in self.jobs:
            return Says(500, b"ValueError: Job with submission_id already exists.", TEXT)
        self.jobs[body["submission_id"]] = body
        return Says(never=True) if self.loses_answers else told(body)


def test_a_submission_whose_answer_is_lost_is_found_by_the_next_one(
    server: Server, behind: RayCluster
):
    server.answer = ray = Ray()
    ray.loses_answers = True
    with pytest.raises(ClusterUnreachable):
        behind.submit(JOB)
    behind.submit(JOB)
    assert list(ray.jobs) == [JOB.submission]


def test_another_service_s_job_of_the_same_name_is_not_taken_for_ours(
    server: Server, behind: RayCluster
):
    server.answer = Ray()
    behind.submit(Job(JOB.submission, JOB.module, JOB.words, {"slora_service": "other"}))
    with pytest.raises(ClusterRefused, match="somebody else's job"):
        behind.submit(JOB)


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(Says(400, b"Traceback:\nTypeError: no such thing\n", TEXT), id="by the head"),
        pytest.param(
            Says(500, b"Request failed with status code 400: Traceback\nTypeError: no", TEXT),
            id="by its agent",
        ),
    ],
)
def test_what_ray_itself_refuses_is_refused(server: Server, behind: RayCluster, refusal: Says):
    server.answer = Ray(refuses=refusal)
    with pytest.raises(ClusterRefused, match="TypeError: no"):
        behind.submit(JOB)


def test_a_head_that_has_no_agent_yet_is_no_refusal(server: Server, behind: RayCluster):
    server.answer = Ray(refuses=Says(500, b"No available agent to submit job", TEXT))
    with pytest.raises(ClusterUnreachable):
        behind.submit(JOB)


def test_the_code_is_sent_once_and_named_in_every_submission(server: Server, behind: RayCluster):
    server.answer = ray = Ray()
    behind.submit(JOB)
    behind.submit(Job("chat-2-a1", JOB.module, JOB.words, JOB.metadata))
    (name,) = ray.packages
    assert [one.method for one in server.asked if "/packages/" in one.path] == ["GET", "PUT", "GET"]
    environments = [job["runtime_env"] for job in ray.jobs.values()]
    assert environments == [{"working_dir": f"gcs://{name}"}] * 2


def test_a_submission_holds_nothing_but_names(server: Server, behind: RayCluster):
    server.answer = ray = Ray()
    behind.submit(JOB)
    body = ray.jobs[JOB.submission]
    assert set(body) == {"entrypoint", "submission_id", "metadata", "runtime_env"}
    assert body["entrypoint"] == "python -m jobs.finetune --run chat-1"
    assert "secret" not in json.dumps(body)


def test_a_long_log_comes_in_pieces(server: Server, behind: RayCluster):
    server.answer = lambda asked: told({"logs": "ä" * LONGEST_LOG})
    first = behind.log("chat-1-a1")
    assert len(first) == LONGEST_LOG and first == ("ä" * LONGEST_LOG).encode()[:LONGEST_LOG]
    assert behind.log("chat-1-a1", 2 * LONGEST_LOG - 4) == "ää".encode()


@pytest.mark.parametrize("largest", range(30, 60))
def test_a_log_above_the_bound_is_told_up_to_it(server: Server, largest: int):
    whole = 'ab\n\U0001f600ä"\\' * 20
    server.answer = lambda asked: told({"logs": whole})
    cluster = RayCluster("far", server.url, largest=largest)
    found = cluster.log("chat-1-a1")
    assert whole.encode().startswith(found) and found.startswith(b"ab\n")
    cluster.close()


def test_a_cluster_whose_nodes_are_not_back_has_no_size_yet(server: Server, behind: RayCluster):
    server.answer = lambda asked: told({"data": {"result": {"result": []}}})
    with pytest.raises(ClusterUnreachable, match="no node is alive"):
        behind.capacity()


def test_only_living_nodes_count(server: Server, behind: RayCluster):
    def answer(asked: Asked) -> Says:
        if asked.path.startswith("/api/v0/nodes"):
            nodes = [
                {"state": "ALIVE", "resources_total": {"CPU": 4.0, "GPU": 1.0}},
                {"state": "ALIVE", "resources_total": {"CPU": 8.0}},
                {"state": "DEAD", "resources_total": {"CPU": 64.0}},
            ]
            return told({"data": {"result": {"result": nodes}}})
        if asked.path.startswith("/nodes"):
            seen = [
                {"raylet": {"state": "ALIVE"}, "mem": [1000, 10]},
                {"raylet": {"state": "ALIVE"}},
                {"raylet": {"state": "DEAD"}, "mem": [9000, 10]},
            ]
            return told({"data": {"summary": seen}})
        usage = {"loadMetricsReport": {"usage": {"CPU": [3.0, 12.0]}}}
        return told({"data": {"clusterStatus": usage}})

    server.answer = answer
    found = behind.capacity()
    assert (found.cpus, found.free_cpus, found.gpus, found.free_gpus) == (12, 9, 1, 1)
    assert (found.nodes, found.node_memory) == (2, 1000)
