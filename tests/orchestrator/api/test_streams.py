"""Streams of events and logs: they resume exactly, and followers share one poll."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from orchestrator.api.stream_hub import StreamHub
from orchestrator.registry.lifecycle import Reason, Status
from tests.orchestrator.api.builders import ApiHarness, serve_app

LOG = (
    "eins\r\nzwei\rdrei \N{BLACK HEART SUIT} \N{SNOWMAN}\n\ndata: x\nid: 9\n\nevent: end\n".encode()
)
TO_DONE = (Status.SUBMITTED, Status.RUNNING, Status.PUBLISHING, Status.DONE)


@dataclass(frozen=True)
class StreamMessage:
    event: str
    id: str
    data: dict[str, Any]


def parse_messages(text: str) -> list[StreamMessage]:
    """Parse a stream by the standard."""
    messages = []
    for block in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if line[:1] not in ("", ":")
        )
        if "data" in fields:
            messages.append(
                StreamMessage(fields["event"], fields["id"], json.loads(fields["data"]))
            )
    return messages


def join_text(messages: list[StreamMessage]) -> str:
    return "".join(message.data["text"] for message in messages if message.event == "log")


def make_finished_run(api: ApiHarness, *logs: bytes) -> str:
    """Make a finished run with the logs of its attempts; all but the last attempt were lost."""
    run = api.submit()
    for number, log in enumerate(logs, start=1):
        api.cluster.logs[f"{run}-a{number}"] = log
        if number < len(logs):
            api.move(run, Status.SUBMITTED, Status.LOST, reason=Reason.JOB_ABSENT)
            api.move(run, Status.PLANNED)
    api.move(run, *TO_DONE)
    return run


def test_a_log_resumes_at_every_byte(api: ApiHarness):
    run = make_finished_run(api, LOG)
    for start in range(len(LOG) + 1):
        response = api.request(
            "GET", f"/v1/runs/{run}/log", "viewer", params={"from": f"1:{start}"}
        )
        messages = parse_messages(response.text)
        assert join_text(messages) == LOG[start:].decode("utf-8", "replace")
        assert messages[-1].event == "end" and messages[-1].data["status"] == "done"
        plain = api.request(
            "GET", f"/v1/runs/{run}/log", params={"from": f"1:{start}", "follow": "false"}
        )
        assert plain.content == LOG[start:]


def test_a_log_read_byte_by_byte_resumes_at_each_id(api: ApiHarness):
    api.cluster.max_bytes = 1
    run = make_finished_run(api, LOG, LOG)
    messages = parse_messages(api.request("GET", f"/v1/runs/{run}/log").text)
    assert join_text(messages) == (LOG + LOG).decode()
    for index, message in enumerate(messages[:-1]):
        headers = {"Last-Event-ID": message.id}
        # The URL contains the start of the first request; the last id takes precedence.
        response = api.request("GET", f"/v1/runs/{run}/log?from=1:0", headers=headers)
        assert join_text(parse_messages(response.text)) == join_text(messages[index + 1 :])


def test_a_log_larger_than_the_buffer_is_complete(api: ApiHarness, monkeypatch: pytest.MonkeyPatch):
    log = b"".join(b"%09d\n" % number for number in range(600_000))
    run = make_finished_run(api, log)
    response = api.request("GET", f"/v1/runs/{run}/log")
    assert join_text(parse_messages(response.text)).encode() == log


def test_undecodable_bytes_are_replaced_and_keep_positions(api: ApiHarness):
    run = make_finished_run(api, b"a\xff\xfeb\xe2\x98")
    messages = parse_messages(api.request("GET", f"/v1/runs/{run}/log").text)
    assert join_text(messages) == "a\ufffd\ufffdb\ufffd"
    assert messages[-1].id == "1:6"


def test_a_plain_log_spans_all_attempts(api: ApiHarness):
    run = make_finished_run(api, b"one\n", b"", b"three\n")
    response = api.request("GET", f"/v1/runs/{run}/log?follow=false")
    assert response.text == "one\nthree\n"
    assert response.headers["content-type"].startswith("text/plain")


def test_a_run_that_never_ran_has_an_end_and_no_log(api: ApiHarness):
    run = api.submit()
    api.move(run, Status.STOPPED, reason=Reason.USER)
    messages = parse_messages(api.request("GET", f"/v1/runs/{run}/log").text)
    assert [message.event for message in messages] == ["end"]
    assert messages[0].data == {"status": "stopped", "reason": "user", "detail": ""}


@pytest.mark.parametrize(
    "position", ["1", "0:0", "1:-1", "1:01", "2:0", "a:b", "1:0 ", "1:" + "9" * 40]
)
def test_an_invalid_position_is_rejected(api: ApiHarness, position: str):
    run = api.submit()
    headers = {"Last-Event-ID": position}
    assert api.request("GET", f"/v1/runs/{run}/log", headers=headers).status_code == 422
    assert api.request("GET", f"/v1/runs/{run}/log", params={"from": position}).status_code == 422


def test_an_unreachable_cluster_makes_a_plain_log_fail(api: ApiHarness):
    run = make_finished_run(api, LOG)
    api.cluster.is_unreachable = True
    response = api.request("GET", f"/v1/runs/{run}/log?follow=false")
    assert response.status_code == 503 and "Retry-After" in response.headers


def test_events_resume_after_each_event(database_api: ApiHarness):
    run = make_finished_run(database_api, LOG)
    messages = parse_messages(database_api.request("GET", f"/v1/runs/{run}/events").text)
    kinds = ["planned", "submitted", "running", "publishing", "done"]
    assert [message.event for message in messages] == [*kinds, "end"]
    assert [message.id for message in messages] == ["1", "2", "3", "4", "5", "5"]
    for message in messages[:-1]:
        headers = {"Last-Event-ID": message.id}
        again = parse_messages(
            database_api.request("GET", f"/v1/runs/{run}/events", headers=headers).text
        )
        assert again == messages[int(message.id) :]


class StreamFollower:
    """Reads a stream of a real server, in a thread."""

    def __init__(self, api: ApiHarness, url: str, path: str, received: threading.Event) -> None:
        self._api, self._url, self._received = api, url + path, received

    def read_text(self) -> str:
        headers = {"Authorization": f"Bearer {self._api.secrets['viewer', None]}"}
        parts = []
        try:
            with httpx.stream("GET", self._url, headers=headers, timeout=60) as response:
                for part in response.iter_text():
                    parts.append(part)
                    if '"text"' in part:
                        self._received.set()
        except httpx.RemoteProtocolError:
            pass  # the server has closed the stream
        return "".join(parts)


@pytest.fixture
def address(api: ApiHarness) -> Iterator[str]:
    with serve_app(api.app) as listened:
        yield listened


def test_followers_share_a_tail_and_each_get_all_bytes(api: ApiHarness, address: str):
    run = api.submit()
    api.move(run, Status.SUBMITTED, Status.RUNNING)
    api.cluster.logs[f"{run}-a1"] = b"first\n"
    received = [threading.Event() for _ in range(20)]
    followers = [StreamFollower(api, address, f"/v1/runs/{run}/log", item) for item in received]
    with ThreadPoolExecutor(len(followers)) as pool:
        texts = [pool.submit(item.read_text) for item in followers]
        assert all(item.wait(20) for item in received)
        hub: StreamHub = api.app.state.hub
        assert hub.tail_count == 1
        api.cluster.logs[f"{run}-a1"] += LOG
        api.move(run, Status.PUBLISHING, Status.DONE)
        for item in texts:
            messages = parse_messages(item.result(30))
            assert join_text(messages).encode() == b"first\n" + LOG
            assert messages[-1].event == "end"


def test_a_run_without_followers_is_not_polled(api: ApiHarness, address: str):
    run = make_finished_run(api, LOG)
    StreamFollower(api, address, f"/v1/runs/{run}/log", threading.Event()).read_text()
    hub: StreamHub = api.app.state.hub
    assert hub.tail_count == 0


def test_a_follower_survives_an_unreachable_cluster(api: ApiHarness, address: str):
    run = api.submit()
    api.move(run, Status.SUBMITTED, Status.RUNNING)
    api.cluster.is_unreachable = True
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(
            StreamFollower(api, address, f"/v1/runs/{run}/log", threading.Event()).read_text
        )
        api.cluster.logs[f"{run}-a1"] = LOG
        api.move(run, Status.PUBLISHING, Status.DONE)
        api.cluster.is_unreachable = False
        assert join_text(parse_messages(text.result(30))).encode() == LOG


def test_a_stopping_server_closes_streams_without_an_end_event(api: ApiHarness):
    run = api.submit()
    api.move(run, Status.SUBMITTED, Status.RUNNING)
    api.cluster.logs[f"{run}-a1"] = b"first\n"
    received = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with serve_app(api.app) as address:
            text = pool.submit(
                StreamFollower(api, address, f"/v1/runs/{run}/log", received).read_text
            )
            assert received.wait(20)
        messages = parse_messages(text.result(30))
    assert [message.event for message in messages] == ["log"] and messages[0].id == "1:6"
