"""Requests: what is asked again and what is not, and what every answer means."""

from __future__ import annotations

import json
import pickle
import socket

import pytest

from orchestrator.client.client import Client
from orchestrator.client.errors import (
    ClientError,
    Conflict,
    NotAllowed,
    NotThere,
    NotUnderstood,
    Refused,
    ServiceFailed,
    ServiceUnreachable,
)
from orchestrator.client.pauses import Patience
from orchestrator.client.runs import Submission
from tests.orchestrator.client.standin import Answer, Hours, playing, problem, told

TOKEN = "slora_secret"
RUN = {
    "id": "chat-1", "project": "default", "kind": "finetune", "name": "chat",
    "store": "file:///s", "status": "planned", "cluster": "default", "attempt": 0, "workers": 1,
    "priority": 0, "created_at": 1.0, "updated_at": 1,
}  # fmt: skip
ASKED = Submission({"name": "chat"})


def client(url: str, hours: Hours | None = None, waiting: list[str] | None = None) -> Client:
    there, told = hours or Hours(), [] if waiting is None else waiting
    patience = Patience(clock=there.clock, sleep=there.sleep)
    return Client(url, TOKEN, patience=patience, waiting=told.append)


def test_a_submission_whose_answer_was_lost_is_sent_again_under_the_same_key():
    with playing(Answer(drop=True), problem(503, "busy"), told(RUN, 201)) as service:
        run = client(service.url).runs.submit(ASKED)
    assert run.id == "chat-1" and run.updated_at == 1
    keys = {heard.headers["Idempotency-Key"] for heard in service.heard}
    assert len(service.heard) == 3 and len(keys) == 1
    assert json.loads(service.heard[2].body) == {"kind": "finetune", "spec": {"name": "chat"}}


def test_two_submissions_have_two_keys():
    with playing(told(RUN, 201)) as service:
        for _ in range(2):
            client(service.url).runs.submit(ASKED)
    assert len({heard.headers["Idempotency-Key"] for heard in service.heard}) == 2


def test_what_may_have_happened_is_not_done_twice():
    with playing(Answer(drop=True)) as service, pytest.raises(ServiceUnreachable):
        client(service.url).tokens.create("ci", "viewer")
    assert len(service.heard) == 1


def test_a_question_is_asked_again_with_longer_pauses_and_not_for_ever():
    hours, waiting = Hours(), list[str]()
    away = problem(503, "The database does not answer.")
    with playing(away) as service, pytest.raises(ServiceUnreachable, match="does not answer"):
        client(service.url, hours, waiting).me()
    assert waiting == ["The database does not answer."]
    assert 5 <= len(service.heard) <= 12
    assert sum(hours.slept) <= 5.0
    assert max(hours.slept[:3]) < min(hours.slept[-2:])


def test_the_service_may_say_when_to_come_back():
    hours = Hours()
    me = {"label": "ci", "scope": "viewer"}
    with playing(problem(503, "later", Retry_After="2"), told(me)) as service:
        assert client(service.url, hours).me().label == "ci"
    assert hours.slept == [2.0]


def test_a_port_where_nobody_listens_is_exit_code_three_and_says_how_to_go_on():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ServiceUnreachable) as gone:
            client(url).me()
    assert gone.value.exit_code == 3
    assert "slora serve" in str(gone.value) and TOKEN not in str(gone.value)


FAULTS = [{"where": "method.rank", "problem": "5 is too much", "remedy": "Use 4."}] * 2
ANSWERS: dict[str, tuple[Answer, type[ClientError], int, str]] = {
    "401": (problem(401, "Send a token"), NotAllowed, 3, "it knows no such token. The token is"),
    "403": (problem(403, "This needs admin."), NotAllowed, 3, "This needs admin. The token is"),
    "404": (problem(404, "There is no run."), NotThere, 2, "There is no run."),
    "409": (problem(409, "It is at version 3."), Conflict, 1, "It is at version 3."),
    "413": (problem(413, "It is too large."), Refused, 2, "request: It is too large."),
    "422": (problem(422, "2 faults", FAULTS), Refused, 2, "method.rank: 5 is too much. Use 4."),
    "429": (problem(429, "Slower."), ServiceUnreachable, 3, "Slower"),
    "500": (problem(500, "Nobody foresaw it."), ServiceFailed, 1, "failed with 500 (Nobody"),
    "502 of a proxy": (Answer(502, b"<html>", "text/html"), ServiceUnreachable, 3, "Bad Gateway"),
    "another server": (Answer(404, b"<html>", "text/html"), NotUnderstood, 3, "Is it a slora"),
    "a redirect": (Answer(302, b"", "text/html", {"Location": "/x"}), NotUnderstood, 3, "302"),
    "no JSON": (Answer(200, b"<html>", "text/html"), NotUnderstood, 3, "is no JSON"),
    "a list": (told([1]), NotUnderstood, 3, "list came where a Run was due"),
    "a run without a status": (
        told({k: v for k, v in RUN.items() if k != "status"}), NotUnderstood, 3, "without status",
    ),
    "a number as a name": (told({**RUN, "name": 7}), NotUnderstood, 3, "name of a Run is a int"),
    "yes as a number": (told({**RUN, "workers": True}), NotUnderstood, 3, "workers of a Run"),
    "faults that are none": (problem(422, "Bad.", [7, {}]), Refused, 2, ": ."),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "kind", "code", "said"), ANSWERS.values(), ids=ANSWERS)
def test_every_answer_that_is_none_is_an_error_of_ours(
    answer: Answer, kind: type[ClientError], code: int, said: str
):
    with playing(answer) as service, pytest.raises(ClientError) as refused:
        client(service.url).runs.get("chat-1")
    assert type(refused.value) is kind and refused.value.exit_code == code
    assert said in str(refused.value) and TOKEN not in str(refused.value)
    again = pickle.loads(pickle.dumps(refused.value))
    assert str(again) == str(refused.value)


def test_a_redirect_is_not_followed_so_the_token_goes_nowhere_else():
    with playing(told(RUN)) as other:
        away = Answer(307, b"", "text/html", {"Location": f"{other.url}/v1/runs/chat-1"})
        with playing(away) as service, pytest.raises(NotUnderstood):
            client(service.url).runs.get("chat-1")
    assert other.heard == []


def test_keys_that_a_newer_service_adds_are_no_trouble():
    with playing(told({**RUN, "mood": "good", "tokens": 7})) as service:
        assert client(service.url).runs.get("chat-1").tokens == 7


@pytest.mark.parametrize("name", ["../me", "a/b", "a?x=1", "a#b", "a\r\nX: 1", "é"])
def test_a_name_stays_one_part_of_the_path(name: str):
    with playing(told(RUN)) as service:
        client(service.url).runs.get(name)
    assert service.heard[0].path.startswith("/v1/runs/")
    assert service.heard[0].path.count("/") == 3 and "?" not in service.heard[0].path


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_would_be_another_path_is_refused_here(name: str):
    with playing(told(RUN)) as service, pytest.raises(Refused, match="is no name"):
        client(service.url).runs.get(name)
    assert service.heard == []


def test_pages_are_asked_for_as_they_are_needed_and_no_further():
    pages = [told({"items": [{**RUN, "id": f"r{n}"}] * 2, "next": f"c{n}"}) for n in (1, 2, 3)]
    with playing(*pages, told({"items": [], "next": None})) as service:
        first = client(service.url).runs.list()
        assert [next(first).id for _ in range(3)] == ["r1", "r1", "r2"]
        assert len(service.heard) == 2 and "cursor=c1" in service.heard[1].path
        assert [run.id for run in first] == ["r2", "r3", "r3"]
    assert [run.id for run in client_of(pages, most=3)] == ["r1", "r1", "r2"]


def client_of(pages: list[Answer], *, most: int) -> list[object]:
    with playing(*pages) as service:
        return list(client(service.url).runs.list(most=most))


def test_a_list_that_leads_back_to_itself_ends():
    page = told({"items": [RUN], "next": "same"})
    with playing(page) as service:
        assert len(list(client(service.url).runs.list())) == 2


def test_a_list_in_one_piece_is_asked_for_without_a_limit():
    with playing(told({"items": [], "next": None})) as service, client(service.url) as there:
        assert [list(there.projects.list()), list(there.tokens.list()), there.clusters()] == [
            []
        ] * 3
    assert [heard.path for heard in service.heard] == ["/v1/projects", "/v1/tokens", "/v1/clusters"]
