"""Streams: read in any pieces, gone on with where they broke, and not waited for without end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.client.client import Client
from orchestrator.client.errors import NotAllowed, NotThere, NotUnderstood, ServiceUnreachable
from orchestrator.client.feed import LONGEST_LINE, Message, messages
from orchestrator.client.pauses import Patience
from tests.orchestrator.client.standin import Answer, Hours, playing, problem, stream

END = ("1:99", "end", {"status": "done"})


def client(url: str, hours: Hours) -> Client:
    return Client(url, "slora_x", patience=Patience(clock=hours.clock, sleep=hours.sleep))


def log_of(url: str, hours: Hours | None = None, waiting: list[str] | None = None) -> list[str]:
    told = [] if waiting is None else waiting
    pieces = client(url, hours or Hours()).runs.log("r", waiting=told.append)
    return [piece.text if piece.status is None else f"<{piece.status}>" for piece in pieces]


WRITTEN = (
    b": hello\r\n\r\nid: 1\revent: log\rdata: a\rdata: b\r\rid\ndata\n\n"
    b"data:  two spaces\nfield: none\n\nid: 7\ndata: \xc3\xa9\xe2\x80\xa8\x0b\n\nevent: end\n\n"
    b"data: never ended\n"
)
READ = [
    Message("log", "a\nb", "1"),
    Message("message", "", ""),
    Message("message", " two spaces", None),
    Message("message", "é\u2028\x0b", "7"),
    Message("end", "", None),
]


@given(st.sets(st.integers(1, len(WRITTEN) - 1)))
def test_a_stream_reads_the_same_in_any_pieces(cuts: set[int]):
    places = [0, *sorted(cuts), len(WRITTEN)]
    pieces = [WRITTEN[a:b] for a, b in pairwise(places)]
    assert list(messages(pieces)) == READ


def test_a_line_without_an_end_does_not_fill_the_memory():
    def chunks() -> Iterator[bytes]:
        while True:
            yield b"x" * (1 << 20)

    assert LONGEST_LINE == 8 << 20
    with pytest.raises(NotUnderstood, match="more than 8 MiB"):
        next(messages(counted(chunks())))


def counted(chunks: Iterator[bytes]) -> Iterator[bytes]:
    for count, chunk in enumerate(chunks):
        assert count < 20
        yield chunk


def test_a_log_goes_on_where_the_connection_broke_with_no_byte_twice_or_lost():
    first = stream(("1:3", "log", {"text": "abc"}), cut=b'id: 1:6\nevent: log\ndata: {"text": "d')
    second = stream(("1:6", "log", {"text": "def"}))
    third = stream(("2:2", "log", {"text": "gh"}), END)
    waiting: list[str] = []
    with playing(first, problem(503, "closing"), second, third) as service:
        assert log_of(service.url, waiting=waiting) == ["abc", "def", "gh", "<done>"]
    asked = [heard.headers.get("Last-Event-ID") for heard in service.heard]
    assert asked == [None, "1:3", "1:3", "1:6"]
    assert waiting == ["the connection was closed", "the connection was closed"]


def test_a_place_to_begin_at_is_asked_for_at_once():
    with playing(stream(END)) as service:
        list(client(service.url, Hours()).runs.log("r", place="2:17"))
    assert service.heard[0].headers["Last-Event-ID"] == "2:17"


def test_a_service_that_stays_away_is_given_up_after_bounded_pauses():
    hours = Hours()
    with playing(stream(("1:1", "log", {"text": "a"})), problem(503, "down")) as service:
        read = client(service.url, hours).runs.log("r")
        assert next(read).text == "a"
        with pytest.raises(ServiceUnreachable, match="down"):
            next(read)
    assert 250 < sum(hours.slept) <= 300 and max(hours.slept) <= 5.0
    assert len(service.heard) < 200


def test_every_silence_is_a_new_one():
    hours = Hours()
    answers = [stream((f"1:{n}", "log", {"text": str(n)})) for n in range(1, 30)]
    with playing(*answers, stream(END)) as service:
        assert len(log_of(service.url, hours)) == 30
    # After each sign of life the pause is the first one again.
    assert max(hours.slept) <= 0.2


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        pytest.param(problem(404, "There is no run."), NotThere, id="no such run"),
        pytest.param(problem(401, "no"), NotAllowed, id="a revoked token"),
        pytest.param(Answer(200, b"<html>", "text/html"), NotUnderstood, id="no stream"),
        pytest.param(stream(("1:1", "log", [1])), NotUnderstood, id="no object"),
        pytest.param(stream(("1:1", "log", {"txt": "a"})), NotUnderstood, id="no text"),
    ],
)
def test_an_answer_that_will_not_change_is_not_waited_for(answer: Answer, kind: type[Exception]):
    hours = Hours()
    with playing(answer) as service, pytest.raises(kind):
        log_of(service.url, hours)
    assert hours.slept == [] and len(service.heard) == 1


def test_events_are_values_up_to_the_end():
    body = {
        "run": "r",
        "position": 3,
        "at": 1.5,
        "kind": "moved",
        "attempt": 1,
        "body": {"to": "x"},
    }
    with playing(stream(("3", "moved", body), ("3", "end", {"status": "done"}))) as service:
        found = list(client(service.url, Hours()).runs.events("r"))
    assert [(one.position, one.kind, json.dumps(one.body)) for one in found] == [
        (3, "moved", '{"to": "x"}')
    ]
