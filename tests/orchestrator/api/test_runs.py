"""Runs through the API: submitted, listed, shown, stopped, deleted."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from orchestrator.registry.lifecycle import Reason, Status
from tests.orchestrator.api.builders import ApiHarness, add_run


def list_ids(response: Any) -> list[str]:
    assert response.status_code == 200, response.text
    return [run["id"] for run in response.json()["items"]]


def test_a_submission_is_a_planned_run_with_its_spec(database_api: ApiHarness):
    response = database_api.request(
        "POST", "/v1/runs", "submitter", json={"spec": database_api.make_spec(), "priority": 3}
    )
    assert response.status_code == 201
    run = response.json()
    assert (run["status"], run["project"], run["priority"]) == ("planned", "default", 3)
    detail = database_api.request("GET", f"/v1/runs/{run['id']}", "viewer").json()
    assert detail == {**run, "attempts": []}
    spec = database_api.request("GET", f"/v1/runs/{run['id']}/spec", "viewer")
    assert spec.headers["content-type"].startswith("application/yaml")
    assert yaml.safe_load(spec.text)["train"]["steps"] == 10


def test_a_repeated_submission_is_the_same_run(database_api: ApiHarness):
    body = {"spec": database_api.make_spec()}
    first = database_api.request("POST", "/v1/runs", json=body, headers={"Idempotency-Key": "k"})
    again = database_api.request("POST", "/v1/runs", json=body, headers={"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    other = {"spec": database_api.make_spec(), "priority": 1}
    refused = database_api.request("POST", "/v1/runs", json=other, headers={"Idempotency-Key": "k"})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["key"] == "Idempotency-Key"


def test_a_project_tokens_submission_belongs_to_its_project(api: ApiHarness):
    body = {"spec": api.make_spec()}
    response = api.request("POST", "/v1/runs", "submitter", "other", json=body)
    assert response.json()["project"] == "other"


@pytest.mark.parametrize("project", ["default", "nowhere"])
def test_a_submission_to_another_project_gets_404(api: ApiHarness, project: str):
    body = {"spec": api.make_spec(), "project": project}
    assert api.request("POST", "/v1/runs", "submitter", "other", json=body).status_code == 404


def test_all_errors_of_a_spec_are_reported_together(api: ApiHarness):
    spec = api.make_spec(train={"steps": -1, "lr": 1})
    response = api.request("POST", "/v1/runs", json={"spec": spec})
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    keys = {error["key"] for error in response.json()["errors"]}
    assert {"train.steps", "train.lr"} <= keys


def test_an_invalid_spec_of_another_kind_is_rejected(api: ApiHarness):
    response = api.request("POST", "/v1/runs", json={"kind": "retrain", "spec": {"name": "chat"}})
    assert response.status_code == 422


def test_a_check_writes_nothing(api: ApiHarness):
    response = api.request("POST", "/v1/runs/check", "submitter", json={"spec": api.make_spec()})
    assert response.status_code == 200
    checked = response.json()
    assert (checked["name"], checked["workers"], checked["tokens"]) == ("chat", 1, 10 * 4 * 64)
    assert list_ids(api.request("GET", "/v1/runs")) == []


def test_pages_go_through_all_runs_once(database_api: ApiHarness):
    for number in range(7):
        add_run(database_api.service.database, f"r{number}")
    ids: list[str] = []
    after: dict[str, str] = {}
    while True:
        response = database_api.request("GET", "/v1/runs", params={"limit": 3, **after})
        ids += list_ids(response)
        if response.json()["next"] is None:
            break
        after = {"cursor": response.json()["next"]}
    assert sorted(ids) == [f"r{number}" for number in range(7)] and len(ids) == 7


@pytest.mark.parametrize(
    "cursor", ["x", "W10", "WzEsMl0", "é", "bnVsbA", "WyJhIiwiYiJd", "W05hTiwiYSJd"]
)
def test_a_foreign_cursor_is_rejected(api: ApiHarness, cursor: str):
    response = api.request("GET", "/v1/runs", params={"cursor": cursor})
    assert response.status_code == 422
    assert response.json()["errors"][0]["key"] == "cursor"


def test_each_filter_narrows_the_list(api: ApiHarness):
    database = api.service.database
    add_run(database, "a", name="chat")
    add_run(database, "b", name="news", project="other")
    add_run(database, "c", name="news", kind="search")
    api.move("c", Status.SUBMITTED)
    assert list_ids(api.request("GET", "/v1/runs", params={"project": "other"})) == ["b"]
    assert list_ids(api.request("GET", "/v1/runs", params={"name": "chat"})) == ["a"]
    assert list_ids(api.request("GET", "/v1/runs", params={"kind": "search"})) == ["c"]
    assert list_ids(api.request("GET", "/v1/runs", params={"status": "submitted"})) == ["c"]
    assert list_ids(api.request("GET", "/v1/runs", "viewer", "other")) == ["b"]
    assert (
        list_ids(api.request("GET", "/v1/runs", "viewer", "other", params={"project": "default"}))
        == []
    )


def test_a_stop_request_is_recorded_once(database_api: ApiHarness):
    run = database_api.submit()
    first = database_api.request("POST", f"/v1/runs/{run}/stop", "submitter")
    again = database_api.request("POST", f"/v1/runs/{run}/stop", "submitter")
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["stop"] == "user"
    assert again.json()["revision"] == first.json()["revision"]


def test_an_ended_run_is_deleted_by_an_admin_of_its_project(database_api: ApiHarness):
    run = database_api.submit("other")
    path = f"/v1/runs/{run}"
    early = database_api.request("DELETE", path)
    assert early.status_code == 409 and "slora stop" in early.json()["detail"]
    database_api.move(run, Status.STOPPED, reason=Reason.USER)
    assert database_api.request("DELETE", path, "submitter", "other").status_code == 403
    assert database_api.request("DELETE", path, "admin", "default").status_code == 404
    deleted = database_api.request("DELETE", path, "admin", "other")
    assert deleted.status_code == 200
    assert deleted.json() == {"run": run, "files": 1, "retained_files": 0, "reason": ""}
    assert database_api.request("GET", path).status_code == 404
    assert database_api.request("DELETE", path).status_code == 404
