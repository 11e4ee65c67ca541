"""Numbers that once ended the service: each is refused with 422, and nothing is written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import text

from tests.orchestrator.api.builders import ApiHarness

MARK = '"PILL"'
PILLS: dict[str, tuple[dict[str, Any], str]] = {
    "steps": ({"train": {"steps": "PILL", "batch_size": 10**6}}, str(10**18)),
    "tokens": ({"train": {"steps": 10**9, "batch_size": "PILL"}}, str(10**7)),
    "cpus": ({"cluster": {"cpus_per_worker": "PILL"}}, str(10**4299)),
    "cpus in total": ({"cluster": {"cpus_per_worker": 10**5, "workers": "PILL"}}, str(10**5)),
    "length": (
        {"train": {"epochs": 3}, "data": {"train": "/d", "max_length": "PILL"}},
        str(10**320),
    ),
    "rate": ({"train": {"steps": 1, "learning_rate": "PILL"}}, "1e999"),
    "seed": ({"train": {"steps": 1, "seed": "PILL"}}, str(2**63)),
}
TOO_LONG = ({"train": {"steps": "PILL"}}, "9" * 4301)
"""Python refuses to read it, so the body is no JSON."""


def make_body(api: ApiHarness, pill: tuple[dict[str, Any], str], **fields: Any) -> str:
    changes, number = pill
    return json.dumps({"spec": api.make_spec(**changes), **fields}).replace(MARK, number)


def send(api: ApiHarness, method: str, path: str, body: str) -> Any:
    return api.request(
        method,
        path,
        "submitter",
        "other",
        content=body,
        headers={"Content-Type": "application/json"},
    )


def count_rows(api: ApiHarness) -> int:
    with api.service.database.read() as session:
        counts = (
            session.scalar(text(f"SELECT count(*) FROM {table}")) for table in ("runs", "schedules")
        )
        return sum(count or 0 for count in counts)


@pytest.mark.parametrize("pill", PILLS)
def test_a_pill_is_refused_with_its_key(api: ApiHarness, pill: str):
    schedule = {"name": "nightly", "cron": "* * * * *", "kind": "finetune"}
    for path, fields in (("/v1/runs", {}), ("/v1/runs/check", {}), ("/v1/schedules", schedule)):
        response = send(api, "POST", path, make_body(api, PILLS[pill], **fields))
        assert response.status_code == 422, (path, response.text[:300])
        assert response.json()["errors"][0]["key"].partition(".")[0] in PILLS[pill][0]
        assert len(response.content) < 5000
    assert count_rows(api) == 0


def test_a_change_of_a_schedule_to_a_pill_is_refused(api: ApiHarness):
    body = {"name": "nightly", "cron": "* * * * *", "kind": "finetune", "spec": api.make_spec()}
    created = api.request("POST", "/v1/schedules", "submitter", "other", json=body)
    assert created.status_code == 201, created.text
    for pill in PILLS.values():
        response = send(api, "PATCH", "/v1/schedules/other/nightly", make_body(api, pill))
        assert response.status_code == 422, response.text[:300]


@pytest.mark.parametrize("number", ["9" * 4301, "-" + "9" * 100_000, "[" * 10_000, "-Infinity"])
def test_a_number_that_python_does_not_read_is_an_invalid_body(api: ApiHarness, number: str):
    for path in ("/v1/runs", "/v1/runs/check", "/v1/schedules"):
        response = send(api, "POST", path, make_body(api, (TOO_LONG[0], number)))
        assert response.status_code in (400, 422), (path, response.status_code)


def test_a_row_with_json_that_cannot_be_loaded_hides_no_other(api: ApiHarness):
    for name in ("pill", "good"):
        body = {"name": name, "cron": "* * * * *", "kind": "finetune", "spec": api.make_spec()}
        assert api.request("POST", "/v1/schedules", json=body).status_code == 201
    with api.service.database.write() as session:
        spec = '{"steps": ' + "9" * 5000 + "}"
        statement = text("UPDATE schedules SET spec = :spec WHERE name = 'pill'")
        session.execute(statement, {"spec": spec})
    items = api.request("GET", "/v1/schedules").json()["items"]
    assert {item["name"]: "unreadable_json" in item["spec"] for item in items} == {
        "pill": True, "good": False
    }  # fmt: skip
    assert api.request("DELETE", "/v1/schedules/default/pill").status_code == 204
