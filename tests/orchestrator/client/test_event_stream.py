"""Streams: parsed in any chunks, resumed where they broke, given up after a bounded time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.client.client import ServiceClient
from orchestrator.client.errors import (
    AccessDenied,
    MissingResource,
    ServiceUnreachable,
    UnexpectedResponse,
)
from orchestrator.client.event_stream import MAX_LINE_BYTES, ServerEvent, parse_events
from orchestrator.client.retry import RetryBudget
from tests.orchestrator.client.fake_service import (
    ScriptedResponse,
    SimulatedClock,
    make_problem,
    make_stream,
    run_script,
)

END = ("1:99", "end", {"status": "done"})


def make_client(url: str, clock: SimulatedClock) -> ServiceClient:
    return ServiceClient(
        url, "slora_x", retry_budget=RetryBudget(clock=clock.read, sleep=clock.sleep)
    )


def read_segments(
    url: str, clock: SimulatedClock | None = None, reasons: list[str] | None = None
) -> list[str]:
    heard_reasons = [] if reasons is None else reasons
    segments = make_client(url, clock or SimulatedClock()).runs.follow_log(
        "r", on_retry=heard_reasons.append
    )
    return [
        segment.text if segment.status is None else f"<{segment.status}>" for segment in segments
    ]


WRITTEN = (
    b": hello\r\n\r\nid: 1\revent: log\rdata: a\rdata: b\r\rid\ndata\n\n"
    b"data:  two spaces\nfield: none\n\nid: 7\ndata: \xc3\xa9\xe2\x80\xa8\x0b\n\nevent: end\n\n"
    b"data: never ended\n"
)
READ = [
    ServerEvent("log", "a\nb", "1"),
    ServerEvent("message", "", ""),
    ServerEvent("message", " two spaces", None),
    ServerEvent("message", "é\u2028\x0b", "7"),
    ServerEvent("end", "", None),
]


@given(st.sets(st.integers(1, len(WRITTEN) - 1)))
def test_a_stream_parses_the_same_however_it_is_split(cuts: set[int]):
    positions = [0, *sorted(cuts), len(WRITTEN)]
    pieces = [WRITTEN[a:b] for a, b in pairwise(positions)]
    assert list(parse_events(pieces)) == READ


def test_an_endless_line_does_not_fill_the_memory():
    def chunks() -> Iterator[bytes]:
        while True:
            yield b"x" * (1 << 20)

    assert MAX_LINE_BYTES == 8 << 20
    with pytest.raises(UnexpectedResponse, match="more than 8 MiB"):
        next(parse_events(limit_chunks(chunks())))


def limit_chunks(chunks: Iterator[bytes]) -> Iterator[bytes]:
    for count, chunk in enumerate(chunks):
        assert count < 20
        yield chunk


def test_a_log_resumes_after_a_broken_connection_exactly():
    first = make_stream(
        ("1:3", "log", {"text": "abc"}), cut=b'id: 1:6\nevent: log\ndata: {"text": "d'
    )
    second = make_stream(("1:6", "log", {"text": "def"}))
    third = make_stream(("2:2", "log", {"text": "gh"}), END)
    reasons: list[str] = []
    with run_script(first, make_problem(503, "closing"), second, third) as service:
        assert read_segments(service.url, reasons=reasons) == ["abc", "def", "gh", "<done>"]
    last_ids = [request.headers.get("Last-Event-ID") for request in service.received]
    assert last_ids == [None, "1:3", "1:3", "1:6"]
    assert reasons == ["the connection was closed", "the connection was closed"]


def test_a_start_position_is_sent_with_the_first_request():
    with run_script(make_stream(END)) as service:
        list(make_client(service.url, SimulatedClock()).runs.follow_log("r", position="2:17"))
    assert service.received[0].headers["Last-Event-ID"] == "2:17"


def test_following_an_unreachable_service_ends_after_bounded_pauses():
    clock = SimulatedClock()
    with run_script(
        make_stream(("1:1", "log", {"text": "a"})), make_problem(503, "down")
    ) as service:
        segments = make_client(service.url, clock).runs.follow_log("r")
        assert next(segments).text == "a"
        with pytest.raises(ServiceUnreachable, match="down"):
            next(segments)
    assert 250 < sum(clock.pauses) <= 300 and max(clock.pauses) <= 5.0
    assert len(service.received) < 200


def test_each_interruption_starts_a_new_budget():
    clock = SimulatedClock()
    responses = [make_stream((f"1:{n}", "log", {"text": str(n)})) for n in range(1, 30)]
    with run_script(*responses, make_stream(END)) as service:
        assert len(read_segments(service.url, clock)) == 30
    # After each event the pause is the first one again.
    assert max(clock.pauses) <= 0.2


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        pytest.param(make_problem(404, "There is no run."), MissingResource, id="no such run"),
        pytest.param(make_problem(401, "no"), AccessDenied, id="a revoked token"),
        pytest.param(
            ScriptedResponse(200, b"<html>", "text/html"), UnexpectedResponse, id="no stream"
        ),
        pytest.param(make_stream(("1:1", "log", [1])), UnexpectedResponse, id="no object"),
        pytest.param(make_stream(("1:1", "log", {"txt": "a"})), UnexpectedResponse, id="no text"),
    ],
)
def test_a_permanent_error_is_not_retried(response: ScriptedResponse, kind: type[Exception]):
    clock = SimulatedClock()
    with run_script(response) as service, pytest.raises(kind):
        read_segments(service.url, clock)
    assert clock.pauses == [] and len(service.received) == 1


def test_events_are_parsed_up_to_the_end():
    body = {
        "run": "r",
        "position": 3,
        "at": 1.5,
        "kind": "moved",
        "attempt": 1,
        "body": {"to": "x"},
    }
    with run_script(make_stream(("3", "moved", body), ("3", "end", {"status": "done"}))) as service:
        events = list(make_client(service.url, SimulatedClock()).runs.follow_events("r"))
    assert [(event.position, event.kind, json.dumps(event.body)) for event in events] == [
        (3, "moved", '{"to": "x"}')
    ]
