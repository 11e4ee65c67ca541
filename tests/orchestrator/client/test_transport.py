"""Requests: which are retried, and the error of every failed response."""

from __future__ import annotations

import json
import pickle
import socket

import pytest

from orchestrator.client.client import ServiceClient
from orchestrator.client.errors import (
    AccessDenied,
    ClientError,
    Conflict,
    MissingResource,
    RequestRejected,
    ServiceError,
    ServiceUnreachable,
    TooManyRequests,
    UnexpectedResponse,
)
from orchestrator.client.retry import RetryBudget
from orchestrator.client.runs import make_submission
from tests.orchestrator.client.fake_service import (
    ScriptedResponse,
    SimulatedClock,
    make_json,
    make_problem,
    run_script,
)

TOKEN = "slora_secret"
RUN = {
    "id": "chat-1", "project": "default", "kind": "finetune", "name": "chat",
    "store": "file:///s", "status": "planned", "cluster": "default", "attempt": 0, "workers": 1,
    "priority": 0, "created_at": 1.0, "updated_at": 1, "revision": 1, "attempts": [],
}  # fmt: skip
SUBMISSION = make_submission({"name": "chat"}, kind="finetune")


def make_client(
    url: str, clock: SimulatedClock | None = None, reasons: list[str] | None = None
) -> ServiceClient:
    simulated, heard_reasons = clock or SimulatedClock(), [] if reasons is None else reasons
    budget = RetryBudget(clock=simulated.read, sleep=simulated.sleep)
    return ServiceClient(url, TOKEN, retry_budget=budget, on_retry=heard_reasons.append)


def test_a_submission_is_retried_under_the_same_key():
    with run_script(
        ScriptedResponse(drop=True), make_problem(503, "busy"), make_json(RUN, 201)
    ) as service:
        run = make_client(service.url).runs.submit(SUBMISSION)
    assert run.id == "chat-1" and run.updated_at == 1
    keys = {request.headers["Idempotency-Key"] for request in service.received}
    assert len(service.received) == 3 and len(keys) == 1
    assert json.loads(service.received[2].body) == {"kind": "finetune", "spec": {"name": "chat"}}


def test_two_submissions_have_two_keys():
    with run_script(make_json(RUN, 201)) as service:
        for _ in range(2):
            make_client(service.url).runs.submit(SUBMISSION)
    assert len({request.headers["Idempotency-Key"] for request in service.received}) == 2


def test_a_request_that_may_have_succeeded_is_not_repeated():
    with run_script(ScriptedResponse(drop=True)) as service, pytest.raises(ServiceUnreachable):
        make_client(service.url).tokens.create("ci", "viewer")
    assert len(service.received) == 1


def test_a_request_is_retried_with_growing_pauses_for_a_bounded_time():
    clock, reasons = SimulatedClock(), list[str]()
    unreachable = make_problem(503, "The database does not answer.")
    with (
        run_script(unreachable) as service,
        pytest.raises(ServiceUnreachable, match="does not answer"),
    ):
        make_client(service.url, clock, reasons).get_me()
    assert reasons == ["The database does not answer."]
    assert 5 <= len(service.received) <= 12
    assert sum(clock.pauses) <= 5.0
    assert max(clock.pauses[:3]) < min(clock.pauses[-2:])


def test_retry_after_is_respected():
    clock = SimulatedClock()
    me = {"id": "0123", "label": "ci", "scope": "viewer", "created_at": 1.0}
    with run_script(make_problem(503, "later", Retry_After="2"), make_json(me)) as service:
        assert make_client(service.url, clock).get_me().label == "ci"
    assert clock.pauses == [2.0]


def test_a_request_above_a_limit_was_not_executed_and_is_repeated():
    clock = SimulatedClock()
    token = {"id": "0123", "label": "ci", "scope": "viewer", "created_at": 1.0, "secret": "x"}
    slower = make_problem(429, "Too many requests of this token.", Retry_After="1")
    with run_script(slower, make_json(token, 201)) as service:
        assert make_client(service.url, clock).tokens.create("ci", "viewer").label == "ci"
    assert clock.pauses == [1.0]


def test_an_unreachable_service_is_exit_code_three_with_a_hint():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ServiceUnreachable) as raised:
            make_client(url).get_me()
    assert raised.value.exit_code == 3
    assert "slora serve" in str(raised.value) and TOKEN not in str(raised.value)


ERRORS = [{"key": "method.rank", "problem": "5 is too much", "remedy": "Use 4."}] * 2
HTML = ScriptedResponse(404, b"<html>", "text/html")
RESPONSES: dict[str, tuple[ScriptedResponse, type[ClientError], int, str]] = {
    "401": (make_problem(401, "Send a token"), AccessDenied, 3, "not valid. The token comes from"),
    "403": (
        make_problem(403, "This requires admin."), AccessDenied, 3,
        "This requires admin. The token comes from",
    ),
    "404": (make_problem(404, "There is no run."), MissingResource, 2, "There is no run."),
    "409": (make_problem(409, "It is at version 3."), Conflict, 1, "It is at version 3."),
    "413": (make_problem(413, "Too large."), RequestRejected, 2, "request: Too large."),
    "422": (
        make_problem(422, "2 errors", ERRORS), RequestRejected, 2,
        "method.rank: 5 is too much. Use 4.",
    ),
    "429": (make_problem(429, "Slower."), TooManyRequests, 3, "Slower"),
    "500": (make_problem(500, "Unexpected."), ServiceError, 1, "failed with 500 (Unexpected)"),
    "502 of a proxy": (
        ScriptedResponse(502, b"<html>", "text/html"), ServiceUnreachable, 3, "Bad Gateway",
    ),
    "another server": (HTML, UnexpectedResponse, 3, "Check that this is a slora"),
    "a redirect": (
        ScriptedResponse(302, b"", "text/html", {"Location": "/x"}), UnexpectedResponse, 3, "302",
    ),
    "no JSON": (
        ScriptedResponse(200, b"<html>", "text/html"), UnexpectedResponse, 3, "is not JSON",
    ),
    "a list": (make_json([1]), UnexpectedResponse, 3, "not a valid RunDetailResponse (list:"),
    "a run without a status": (
        make_json({k: v for k, v in RUN.items() if k != "status"}), UnexpectedResponse, 3,
        "status: Field required",
    ),
    "a number as a name": (
        make_json({**RUN, "name": 7}), UnexpectedResponse, 3,
        "name: Input should be a valid string",
    ),
    "a boolean as a number": (
        make_json({**RUN, "workers": True}), UnexpectedResponse, 3, "workers: Input should be",
    ),
    "malformed errors": (make_problem(422, "Bad.", [7, {}]), RequestRejected, 2, ": ."),
}  # fmt: skip


@pytest.mark.parametrize(("response", "kind", "code", "message"), RESPONSES.values(), ids=RESPONSES)
def test_every_failure_is_a_client_error(
    response: ScriptedResponse, kind: type[ClientError], code: int, message: str
):
    with run_script(response) as service, pytest.raises(ClientError) as refused:
        make_client(service.url).runs.get("chat-1")
    assert type(refused.value) is kind and refused.value.exit_code == code
    assert message in str(refused.value) and TOKEN not in str(refused.value)
    copied = pickle.loads(pickle.dumps(refused.value))
    assert str(copied) == str(refused.value)


def test_a_redirect_is_not_followed():
    with run_script(make_json(RUN)) as other:
        redirect = ScriptedResponse(
            307, b"", "text/html", {"Location": f"{other.url}/v1/runs/chat-1"}
        )
        with run_script(redirect) as service, pytest.raises(UnexpectedResponse):
            make_client(service.url).runs.get("chat-1")
    assert other.received == []


def test_unknown_keys_of_a_newer_service_are_ignored():
    with run_script(make_json({**RUN, "mood": "good", "tokens": 7})) as service:
        assert make_client(service.url).runs.get("chat-1").tokens == 7


@pytest.mark.parametrize("name", ["../me", "a/b", "a?x=1", "a#b", "a\r\nX: 1", "é"])
def test_a_name_stays_a_single_path_segment(name: str):
    with run_script(make_json(RUN)) as service:
        make_client(service.url).runs.get(name)
    assert service.received[0].path.startswith("/v1/runs/")
    assert service.received[0].path.count("/") == 3 and "?" not in service.received[0].path


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_would_change_the_path_is_rejected(name: str):
    with (
        run_script(make_json(RUN)) as service,
        pytest.raises(RequestRejected, match="is not a name"),
    ):
        make_client(service.url).runs.get(name)
    assert service.received == []


def test_pages_are_fetched_as_they_are_needed():
    pages = [make_json({"items": [{**RUN, "id": f"r{n}"}] * 2, "next": f"c{n}"}) for n in (1, 2, 3)]
    with run_script(*pages, make_json({"items": [], "next": None})) as service:
        first = make_client(service.url).runs.list()
        assert [next(first).id for _ in range(3)] == ["r1", "r1", "r2"]
        assert len(service.received) == 2 and "cursor=c1" in service.received[1].path
        assert [run.id for run in first] == ["r2", "r3", "r3"]
    assert [run.id for run in list_runs(pages, max_items=3)] == ["r1", "r1", "r2"]


def list_runs(pages: list[ScriptedResponse], *, max_items: int) -> list[object]:
    with run_script(*pages) as service:
        return list(make_client(service.url).runs.list(max_items=max_items))


def test_a_repeated_cursor_ends_the_list():
    page = make_json({"items": [RUN], "next": "same"})
    with run_script(page) as service:
        assert len(list(make_client(service.url).runs.list())) == 2


def test_an_unpaged_list_is_requested_without_a_limit():
    with (
        run_script(make_json({"items": [], "next": None})) as service,
        make_client(service.url) as connected,
    ):
        assert [
            list(connected.projects.list()),
            list(connected.tokens.list()),
            connected.list_clusters(),
        ] == [[]] * 3
    assert [request.path for request in service.received] == [
        "/v1/projects",
        "/v1/tokens",
        "/v1/clusters",
    ]
