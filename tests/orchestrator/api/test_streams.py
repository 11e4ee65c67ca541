"""Events and logs as streams: exact wherever they resume, one look for all who follow."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from orchestrator.api.hub import Hub
from orchestrator.registry.lifecycle import Reason, Status
from tests.orchestrator.api.made import Door, listening

LOG = (
    "eins\r\nzwei\rdrei \N{BLACK HEART SUIT} \N{SNOWMAN}\n\ndata: x\nid: 9\n\nevent: end\n".encode()
)
TO_DONE = (Status.SUBMITTED, Status.RUNNING, Status.PUBLISHING, Status.DONE)


@dataclass(frozen=True)
class Message:
    event: str
    id: str
    data: dict[str, Any]


def messages(text: str) -> list[Message]:
    """What a standard reader makes of a stream."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if line[:1] not in ("", ":")
        )
        if "data" in fields:
            found.append(Message(fields["event"], fields["id"], json.loads(fields["data"])))
    return found


def text_of(found: list[Message]) -> str:
    return "".join(one.data["text"] for one in found if one.event == "log")


def done(door: Door, *logs: bytes) -> str:
    """A run that is done, its attempts' logs known to the cluster; all but the last were lost."""
    run = door.submitted()
    for number, log in enumerate(logs, start=1):
        door.cluster.logs[f"{run}-a{number}"] = log
        if number < len(logs):
            door.move(run, Status.SUBMITTED, Status.LOST, reason=Reason.GONE)
            door.move(run, Status.PLANNED)
    door.move(run, *TO_DONE)
    return run


def test_a_log_resumes_at_every_byte(light: Door):
    run = done(light, LOG)
    for start in range(len(LOG) + 1):
        answer = light.ask("GET", f"/v1/runs/{run}/log", "viewer", params={"from": f"1:{start}"})
        found = messages(answer.text)
        assert text_of(found) == LOG[start:].decode("utf-8", "replace")
        assert found[-1].event == "end" and found[-1].data["status"] == "done"
        plain = light.ask(
            "GET", f"/v1/runs/{run}/log", params={"from": f"1:{start}", "follow": "false"}
        )
        assert plain.content == LOG[start:]


def test_a_log_that_comes_byte_by_byte_resumes_exactly_at_each_of_its_ids(light: Door):
    light.cluster.longest = 1
    run = done(light, LOG, LOG)
    whole = messages(light.ask("GET", f"/v1/runs/{run}/log").text)
    assert text_of(whole) == (LOG + LOG).decode()
    for at, one in enumerate(whole[:-1]):
        headers = {"Last-Event-ID": one.id}
        # The address says where the reader once began: how far it came counts.
        answer = light.ask("GET", f"/v1/runs/{run}/log?from=1:0", headers=headers)
        assert text_of(messages(answer.text)) == text_of(whole[at + 1 :])


def test_a_log_larger_than_what_is_kept_comes_whole(light: Door, monkeypatch: pytest.MonkeyPatch):
    log = b"".join(b"%09d\n" % number for number in range(600_000))
    run = done(light, log)
    answer = light.ask("GET", f"/v1/runs/{run}/log")
    assert text_of(messages(answer.text)).encode() == log


def test_bytes_that_are_no_text_are_shown_as_such_and_lose_no_place(light: Door):
    run = done(light, b"a\xff\xfeb\xe2\x98")
    found = messages(light.ask("GET", f"/v1/runs/{run}/log").text)
    assert text_of(found) == "a\ufffd\ufffdb\ufffd"
    assert found[-1].id == "1:6"


def test_a_plain_log_goes_over_all_attempts(light: Door):
    run = done(light, b"one\n", b"", b"three\n")
    answer = light.ask("GET", f"/v1/runs/{run}/log?follow=false")
    assert answer.text == "one\nthree\n"
    assert answer.headers["content-type"].startswith("text/plain")


def test_a_run_that_never_ran_has_an_end_and_no_log(light: Door):
    run = light.submitted()
    light.move(run, Status.STOPPED, reason=Reason.USER)
    found = messages(light.ask("GET", f"/v1/runs/{run}/log").text)
    assert [one.event for one in found] == ["end"]
    assert found[0].data == {"status": "stopped", "reason": "user", "detail": ""}


@pytest.mark.parametrize(
    "place", ["1", "0:0", "1:-1", "1:01", "2:0", "a:b", "1:0 ", "1:" + "9" * 40]
)
def test_a_place_that_is_none_is_a_fault(light: Door, place: str):
    run = light.submitted()
    headers = {"Last-Event-ID": place}
    assert light.ask("GET", f"/v1/runs/{run}/log", headers=headers).status_code == 422
    assert light.ask("GET", f"/v1/runs/{run}/log", params={"from": place}).status_code == 422


def test_a_cluster_that_is_gone_is_told_where_its_log_is_asked_for_now(light: Door):
    run = done(light, LOG)
    light.cluster.gone = True
    answer = light.ask("GET", f"/v1/runs/{run}/log?follow=false")
    assert answer.status_code == 503 and "Retry-After" in answer.headers


def test_events_resume_behind_each_of_them(door: Door):
    run = done(door, LOG)
    whole = messages(door.ask("GET", f"/v1/runs/{run}/events").text)
    kinds = ["planned", "submitted", "running", "publishing", "done"]
    assert [one.event for one in whole] == [*kinds, "end"]
    assert [one.id for one in whole] == ["1", "2", "3", "4", "5", "5"]
    for one in whole[:-1]:
        headers = {"Last-Event-ID": one.id}
        again = messages(door.ask("GET", f"/v1/runs/{run}/events", headers=headers).text)
        assert again == whole[int(one.id) :]


class Follower:
    """Reads a stream of a real server, in a thread of its own."""

    def __init__(self, door: Door, url: str, path: str, seen: threading.Event) -> None:
        self._door, self._url, self._seen = door, url + path, seen

    def text(self) -> str:
        headers = {"Authorization": f"Bearer {self._door.words['viewer', None]}"}
        parts = []
        try:
            with httpx.stream("GET", self._url, headers=headers, timeout=60) as answer:
                for part in answer.iter_text():
                    parts.append(part)
                    if '"text"' in part:
                        self._seen.set()
        except httpx.RemoteProtocolError:
            pass  # the server ended it
        return "".join(parts)


@pytest.fixture
def address(light: Door) -> Iterator[str]:
    with listening(light.app) as listened:
        yield listened


def test_followers_of_a_run_share_its_looks_and_each_get_every_byte(light: Door, address: str):
    run = light.submitted()
    light.move(run, Status.SUBMITTED, Status.RUNNING)
    light.cluster.logs[f"{run}-a1"] = b"first\n"
    seen = [threading.Event() for _ in range(20)]
    followers = [Follower(light, address, f"/v1/runs/{run}/log", one) for one in seen]
    with ThreadPoolExecutor(len(followers)) as pool:
        texts = [pool.submit(one.text) for one in followers]
        assert all(one.wait(20) for one in seen)
        hub: Hub = light.app.state.hub
        assert hub.watched == 1
        light.cluster.logs[f"{run}-a1"] += LOG
        light.move(run, Status.PUBLISHING, Status.DONE)
        for one in texts:
            found = messages(one.result(30))
            assert text_of(found).encode() == b"first\n" + LOG
            assert found[-1].event == "end"


def test_nobody_looks_at_a_run_that_nobody_follows(light: Door, address: str):
    run = done(light, LOG)
    Follower(light, address, f"/v1/runs/{run}/log", threading.Event()).text()
    hub: Hub = light.app.state.hub
    assert hub.watched == 0


def test_a_follower_waits_for_a_cluster_that_is_gone(light: Door, address: str):
    run = light.submitted()
    light.move(run, Status.SUBMITTED, Status.RUNNING)
    light.cluster.gone = True
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(Follower(light, address, f"/v1/runs/{run}/log", threading.Event()).text)
        light.cluster.logs[f"{run}-a1"] = LOG
        light.move(run, Status.PUBLISHING, Status.DONE)
        light.cluster.gone = False
        assert text_of(messages(text.result(30))).encode() == LOG


def test_a_server_that_ends_ends_its_streams_and_they_have_no_end_of_their_own(light: Door):
    run = light.submitted()
    light.move(run, Status.SUBMITTED, Status.RUNNING)
    light.cluster.logs[f"{run}-a1"] = b"first\n"
    seen = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with listening(light.app) as address:
            text = pool.submit(Follower(light, address, f"/v1/runs/{run}/log", seen).text)
            assert seen.wait(20)
        found = messages(text.result(30))
    assert [one.event for one in found] == ["log"] and found[0].id == "1:6"
