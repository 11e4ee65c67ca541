"""Request ids: every answer has one, and so have problems and the log lines of the request."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from logging.handlers import QueueHandler
from queue import Queue

import httpx
import pytest

from orchestrator.api.request_ids import RequestIdFilter, get_request_id
from orchestrator.cli.commands.serve import _LineFormatter
from orchestrator.registry.lifecycle import Status
from tests.orchestrator.api.builders import ApiHarness, serve_app

MADE_ID = re.compile(r"[0-9a-f]{16}")


def test_every_answer_has_an_id_of_its_own(api: ApiHarness):
    big = {"content": b"x" * (1 << 21)}
    answers = [
        api.request("GET", "/healthz", None),
        api.request("GET", "/v1/me"),
        api.request("GET", "/v1/me", None),
        api.request("GET", "/v1/runs/none"),
        api.request("GET", "/nowhere"),
        api.request("PUT", "/v1/runs"),
        api.request("POST", "/v1/runs", json={}),
        api.request("POST", "/v1/runs", **big),
        api.request("GET", f"/v1/runs/{api.submit()}/log?follow=false"),
        api.request("DELETE", "/v1/tokens/" + api.request("GET", "/v1/me").json()["id"]),
    ]
    statuses = [200, 200, 401, 404, 404, 405, 422, 413, 200, 204]
    assert [answer.status_code for answer in answers] == statuses
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(ids) and all(MADE_ID.fullmatch(item) for item in ids)
    for answer in answers:
        if answer.status_code >= 400:
            assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("sent", ["a", "A.b_c-9", "0" * 32])
def test_the_id_of_a_client_is_used(api: ApiHarness, sent: str):
    answer = api.request("GET", "/v1/runs/none", headers={"X-Request-Id": sent})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == sent


@pytest.mark.parametrize("sent", ["", "0" * 33, "a b", "a\x1b[2J", "a/b", "é", "a\n".strip() + ";"])
def test_an_invalid_id_of_a_client_is_replaced(api: ApiHarness, sent: str):
    headers = [("X-Request-Id", sent.encode("latin1"))]
    answer = api.client.get("/healthz", headers=headers)
    assert MADE_ID.fullmatch(answer.headers["x-request-id"])


def test_an_id_that_is_sent_twice_is_replaced(api: ApiHarness):
    answer = api.client.get("/healthz", headers=[("X-Request-Id", "a"), ("X-Request-Id", "b")])
    assert MADE_ID.fullmatch(answer.headers["x-request-id"])


def test_an_unexpected_failure_names_its_id(api: ApiHarness):
    del api.app.state.capacities
    answer = api.request("GET", "/v1/clusters", headers={"X-Request-Id": "mine"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "mine"
    assert "for request mine" in answer.json()["detail"]


def test_a_log_line_has_the_id_of_its_request_only(api: ApiHarness, log: StringIO):
    run = api.submit()
    api.move(run, Status.SUBMITTED, Status.RUNNING)
    api.cluster.is_unreachable = True
    assert log.getvalue() == ""
    api.request("GET", f"/v1/runs/{run}/log?follow=false", headers={"X-Request-Id": "mine"})
    logging.getLogger("orchestrator.loop").warning("a line of a loop")
    lines = log.getvalue().splitlines()
    assert [" [mine]: " in line for line in lines] == [True, False]
    assert lines[1].endswith("WARNING orchestrator.loop: a line of a loop")


def test_requests_at_once_keep_their_ids(api: ApiHarness):
    def ask(number: int) -> bool:
        headers = {"X-Request-Id": f"r{number}"}
        answer = api.request("GET", "/v1/runs/none", headers=headers)
        return bool(answer.json()["request_id"] == f"r{number}")

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(40)))
    assert get_request_id() is None


def test_a_poll_for_all_followers_has_the_id_of_none(api: ApiHarness):
    run = api.submit()
    api.move(run, Status.SUBMITTED, Status.RUNNING)
    api.cluster.is_unreachable = True
    records: Queue[logging.LogRecord] = Queue()
    handler = QueueHandler(records)
    handler.addFilter(RequestIdFilter())
    logger = logging.getLogger("orchestrator.api.stream_hub")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    headers = {"Authorization": f"Bearer {api.secrets['viewer', None]}", "X-Request-Id": "mine"}
    try:
        with (
            serve_app(api.app) as url,
            httpx.stream("GET", f"{url}/v1/runs/{run}/log", headers=headers) as answer,
        ):
            assert answer.headers["x-request-id"] == "mine"
            record = records.get(timeout=30)
        assert "can't be polled" in record.getMessage()
        assert record.__dict__["request_id"] is None
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def log() -> Iterator[StringIO]:
    """Provide what the service logs, as `slora serve` formats it."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RequestIdFilter())
    handler.setFormatter(_LineFormatter())
    logger = logging.getLogger("orchestrator")
    logger.addHandler(handler)
    yield stream
    logger.removeHandler(handler)
