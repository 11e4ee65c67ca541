"""Streams end with their token: revoked here or by another instance, or expired."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import httpx
import pytest

from orchestrator.api.stream_hub import StreamHub
from orchestrator.api.token_watch import TokenWatch
from orchestrator.client.client import ServiceClient
from orchestrator.client.errors import AccessDenied
from orchestrator.registry import tokens
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.migrate import upgrade
from tests.orchestrator.api.builders import ApiHarness, serve_app

TIMEOUT_S = 30


@dataclass
class Reader:
    """Reads a stream to its end, in a thread."""

    url: str
    secret: str
    has_started: threading.Event = field(default_factory=threading.Event)
    ended_at: float = 0.0

    def read_text(self) -> str:
        headers = {"Authorization": f"Bearer {self.secret}"}
        parts = []
        with httpx.stream("GET", self.url, headers=headers, timeout=TIMEOUT_S) as response:
            for part in response.iter_text():
                parts.append(part)
                if "first" in "".join(parts) or "running" in "".join(parts):
                    self.has_started.set()
        self.ended_at = time.monotonic()
        return "".join(parts)


@dataclass
class StreamHarness:
    """A running run on a real server, and readers of its streams."""

    api: ApiHarness
    url: str
    run: str
    pool: ThreadPoolExecutor

    def issue(self, seconds: float | None = None) -> tuple[str, str]:
        """Issue a token and return its id and secret."""
        with self.api.service.database.write() as session:
            token, secret = tokens.issue(session, "ci", "viewer", seconds=seconds)
        return token.id, secret

    def open(self, name: str, secret: str) -> tuple[Reader, Future[str]]:
        """Open a stream, and wait for the first of it."""
        reader = Reader(f"{self.url}/v1/runs/{self.run}/{name}", secret)
        text = self.pool.submit(reader.read_text)
        assert reader.has_started.wait(TIMEOUT_S)
        return reader, text


@pytest.fixture
def streams(database_api: ApiHarness) -> Iterator[StreamHarness]:
    run = database_api.submit()
    database_api.move(run, Status.SUBMITTED, Status.RUNNING)
    database_api.cluster.logs[f"{run}-a1"] = b"first\n"
    with ThreadPoolExecutor(8) as pool, serve_app(database_api.app) as url:
        yield StreamHarness(database_api, url, run, pool)


def read_problem(text: str) -> dict[str, object]:
    """Return the problem document that ends a stream."""
    *_, last = text.strip().split("\n\n")
    fields = dict(line.split(": ", 1) for line in last.splitlines())
    assert fields["event"] == "problem"
    problem: dict[str, object] = json.loads(fields["data"])
    return problem


def test_a_revoked_token_loses_its_streams_and_no_other_does(streams: StreamHarness):
    (revoked, secret), (_, other) = streams.issue(), streams.issue()
    readers = [streams.open(name, secret) for name in ("log", "events")]
    _, others_text = streams.open("log", other)
    assert streams.api.request("DELETE", f"/v1/tokens/{revoked}").status_code == 204
    revoked_at = time.monotonic()
    for reader, text in readers:
        problem = read_problem(text.result(TIMEOUT_S))
        assert problem["status"] == 401 and "revoked" in str(problem["detail"])
        assert problem["request_id"]
        # Promised is a second; a busy machine may take a few.
        assert reader.ended_at - revoked_at < 5
    streams.api.cluster.logs[f"{streams.run}-a1"] += b"second\n"
    streams.api.move(streams.run, Status.PUBLISHING, Status.DONE)
    text = others_text.result(TIMEOUT_S)
    assert "second" in text and "event: end" in text and "problem" not in text


def test_another_instance_may_revoke_the_token(streams: StreamHarness, url: str):
    token, secret = streams.issue()
    _, text = streams.open("log", secret)
    other = Database(url)
    with other.write() as session:
        tokens.revoke(session, token)
    other.close()
    assert read_problem(text.result(TIMEOUT_S))["status"] == 401


def test_an_expired_token_loses_its_streams(streams: StreamHarness):
    _, secret = streams.issue(seconds=3)
    _, text = streams.open("events", secret)
    assert read_problem(text.result(TIMEOUT_S))["status"] == 401


def test_a_log_that_is_still_read_ends_with_a_sentence(streams: StreamHarness):
    """A plain log ends where the cluster has no more; this one always has."""

    class EndlessLog(dict[str, bytes]):
        def get(self, key: str, default: bytes = b"") -> bytes:  # type: ignore[override]
            return b"first\n" * 400_000

    streams.api.cluster.logs = EndlessLog()
    streams.api.cluster.max_bytes = 8
    token, secret = streams.issue()
    _, text = streams.open("log?follow=false", secret)
    streams.api.request("DELETE", f"/v1/tokens/{token}")
    assert "The token was revoked" in text.result(TIMEOUT_S)[-200:]


def test_the_client_reports_a_token_that_was_revoked_meanwhile(streams: StreamHarness):
    token, secret = streams.issue()
    with ServiceClient(streams.url, secret) as client:
        segments = client.runs.follow_log(streams.run)
        assert next(segments).text == "first\n"
        streams.api.request("DELETE", f"/v1/tokens/{token}")
        with pytest.raises(AccessDenied, match="token is not valid"):
            list(segments)


def test_nothing_is_checked_after_the_last_stream(streams: StreamHarness):
    _, secret = streams.issue()
    texts = [streams.open(name, secret)[1] for name in ("log", "log", "events")]
    hub: StreamHub = streams.api.app.state.hub
    assert hub.token_watch.token_count == 1
    streams.api.move(streams.run, Status.PUBLISHING, Status.DONE)
    for text in texts:
        text.result(TIMEOUT_S)
    assert (hub.token_watch.token_count, hub.tail_count) == (0, 0)


def test_streams_stay_open_while_the_database_does_not_answer(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    database = Database(url)

    async def watch() -> list[bool]:
        has_ended = anyio.Event()
        watch = TokenWatch(database, on_invalid=has_ended.set)
        async with watch.watch("0123456789abcdef") as token:
            # Without tables every query fails.
            with anyio.move_on_after(1.2):
                await has_ended.wait()
            states = [token.is_valid]
            await anyio.to_thread.run_sync(upgrade, url)
            with anyio.fail_after(TIMEOUT_S):
                await has_ended.wait()
            return [*states, token.is_valid]

    assert anyio.run(watch) == [True, False]
    database.close()
