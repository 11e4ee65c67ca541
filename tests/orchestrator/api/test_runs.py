"""Runs through the door: submitted, listed, shown, stopped."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from orchestrator.registry.lifecycle import Status
from tests.orchestrator.api.made import Door, added


def ids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [one["id"] for one in answer.json()["items"]]


def test_a_submission_is_a_planned_run_with_its_spec(door: Door):
    answer = door.ask("POST", "/v1/runs", "submitter", json={"spec": door.spec(), "priority": 3})
    assert answer.status_code == 201
    run = answer.json()
    assert (run["status"], run["project"], run["priority"]) == ("planned", "default", 3)
    shown = door.ask("GET", f"/v1/runs/{run['id']}", "viewer").json()
    assert shown == {**run, "attempts": []}
    spec = door.ask("GET", f"/v1/runs/{run['id']}/spec", "viewer")
    assert spec.headers["content-type"].startswith("application/yaml")
    assert yaml.safe_load(spec.text)["train"]["steps"] == 10


def test_a_repeated_submission_is_the_same_run(door: Door):
    body = {"spec": door.spec()}
    first = door.ask("POST", "/v1/runs", json=body, headers={"Idempotency-Key": "k"})
    again = door.ask("POST", "/v1/runs", json=body, headers={"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    other = {"spec": door.spec(), "priority": 1}
    refused = door.ask("POST", "/v1/runs", json=other, headers={"Idempotency-Key": "k"})
    assert refused.status_code == 422
    assert refused.json()["faults"][0]["where"] == "Idempotency-Key"


def test_a_submission_of_a_project_token_is_of_its_project(light: Door):
    body = {"spec": light.spec()}
    answer = light.ask("POST", "/v1/runs", "submitter", "other", json=body)
    assert answer.json()["project"] == "other"


@pytest.mark.parametrize("project", ["default", "nowhere"])
def test_a_submission_to_another_project_is_to_none(light: Door, project: str):
    body = {"spec": light.spec(), "project": project}
    assert light.ask("POST", "/v1/runs", "submitter", "other", json=body).status_code == 404


def test_all_faults_of_a_spec_are_told_together(light: Door):
    spec = light.spec(train={"steps": -1, "lr": 1})
    answer = light.ask("POST", "/v1/runs", json={"spec": spec})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    wrong = {one["where"] for one in answer.json()["faults"]}
    assert {"train.steps", "train.lr"} <= wrong


def test_a_kind_that_is_not_available_yet_is_a_fault(light: Door):
    answer = light.ask("POST", "/v1/runs", json={"kind": "retrain", "spec": {"name": "chat"}})
    assert answer.status_code == 422


def test_a_check_writes_nothing(light: Door):
    answer = light.ask("POST", "/v1/runs/check", "submitter", json={"spec": light.spec()})
    assert answer.status_code == 200
    found = answer.json()
    assert (found["name"], found["workers"], found["tokens"]) == ("chat", 1, 10 * 4 * 64)
    assert ids(light.ask("GET", "/v1/runs")) == []


def test_pages_go_through_all_runs_once(door: Door):
    for number in range(7):
        added(door.service.database, f"r{number}")
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        answer = door.ask("GET", "/v1/runs", params={"limit": 3, **after})
        seen += ids(answer)
        if answer.json()["next"] is None:
            break
        after = {"cursor": answer.json()["next"]}
    assert sorted(seen) == [f"r{number}" for number in range(7)] and len(seen) == 7


@pytest.mark.parametrize(
    "cursor", ["x", "W10", "WzEsMl0", "é", "bnVsbA", "WyJhIiwiYiJd", "W05hTiwiYSJd"]
)
def test_a_cursor_that_is_none_of_ours_is_a_fault(light: Door, cursor: str):
    answer = light.ask("GET", "/v1/runs", params={"cursor": cursor})
    assert answer.status_code == 422
    assert answer.json()["faults"][0]["where"] == "cursor"


def test_a_list_is_narrowed_by_each_of_its_filters(light: Door):
    database = light.service.database
    added(database, "a", name="chat")
    added(database, "b", name="news", project="other")
    added(database, "c", name="news", kind="search")
    light.move("c", Status.SUBMITTED)
    assert ids(light.ask("GET", "/v1/runs", params={"project": "other"})) == ["b"]
    assert ids(light.ask("GET", "/v1/runs", params={"name": "chat"})) == ["a"]
    assert ids(light.ask("GET", "/v1/runs", params={"kind": "search"})) == ["c"]
    assert ids(light.ask("GET", "/v1/runs", params={"status": "submitted"})) == ["c"]
    assert ids(light.ask("GET", "/v1/runs", "viewer", "other")) == ["b"]
    assert ids(light.ask("GET", "/v1/runs", "viewer", "other", params={"project": "default"})) == []


def test_a_stop_is_written_on_the_run_and_asked_again_changes_nothing(door: Door):
    run = door.submitted()
    first = door.ask("POST", f"/v1/runs/{run}/stop", "submitter")
    again = door.ask("POST", f"/v1/runs/{run}/stop", "submitter")
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["stop"] == "user"
    assert again.json()["revision"] == first.json()["revision"]
