"""Quotas of a project at the API: set, shown, and refused with the limit, the use and the fix."""

from __future__ import annotations

from typing import Any

from jobs.store.open import open_store
from tests.orchestrator.api.builders import ApiHarness


def set_limits(api: ApiHarness, **limits: int | None) -> Any:
    response = api.request("PATCH", "/v1/projects/default", json=limits)
    assert response.status_code == 200, response.text
    return response.json()


def submit(api: ApiHarness, **changes: Any) -> Any:
    headers = changes.pop("headers", {})
    body = {"spec": api.make_spec(), **changes}
    return api.request("POST", "/v1/runs", "submitter", "default", json=body, headers=headers)


def make_schedule(api: ApiHarness, name: str, **changes: Any) -> Any:
    body = {
        "name": name, "cron": "0 3 * * *", "kind": "finetune", "spec": api.make_spec(), **changes,
    }  # fmt: skip
    return api.request("POST", "/v1/schedules", "submitter", "default", json=body)


def list_requests(api: ApiHarness) -> list[str]:
    return list(open_store(api.service.config.stores[0]).list("runs/"))


def test_a_submission_at_the_limit_is_refused_and_leaves_nothing(database_api: ApiHarness):
    api = database_api
    set_limits(api, max_queued=1)
    key = {"Idempotency-Key": "first"}
    first = submit(api, headers=key)
    assert first.status_code == 201 and len(list_requests(api)) == 1
    refused = submit(api)
    assert refused.status_code == 422
    (error,) = refused.json()["errors"]
    assert error["key"] == "max_queued"
    assert error["problem"] == "project default has 1 of its 1 runs that have not ended"
    assert "slora stop" in error["remedy"]
    assert len(list_requests(api)) == 1
    repeated = submit(api, headers=key)
    assert (repeated.status_code, repeated.json()["id"]) == (200, first.json()["id"])


def test_the_resources_of_a_run_are_those_of_all_its_workers(api: ApiHarness):
    set_limits(api, max_cpus=12, max_gpus=3)
    cluster = {"workers": 4, "cpus_per_worker": 4, "gpus_per_worker": 1}
    refused = submit(api, spec=api.make_spec(cluster=cluster)).json()["errors"]
    assert {error["key"]: error["problem"] for error in refused} == {
        "max_cpus": "the run needs 16 CPUs at once; the limit of project default is 12",
        "max_gpus": "the run needs 4 GPUs at once; the limit of project default is 3",
    }
    cluster = {"workers": 3, "cpus_per_worker": 4, "gpus_per_worker": 1}
    assert submit(api, spec=api.make_spec(cluster=cluster)).status_code == 201
    assert list_requests(api) == [key for key in list_requests(api) if "request.json" in key]
    assert len(list_requests(api)) == 1


def test_a_schedule_keeps_to_the_number_and_the_priority_of_its_project(api: ApiHarness):
    set_limits(api, max_schedules=1, max_priority=5)
    assert make_schedule(api, "loud", priority=6).json()["errors"][0]["key"] == "priority"
    assert make_schedule(api, "nightly", priority=5).status_code == 201
    assert make_schedule(api, "hourly").json()["errors"][0]["key"] == "max_schedules"
    path = "/v1/schedules/default/nightly"
    refused = api.request("PATCH", path, "submitter", "default", json={"priority": 6})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["remedy"] == "Use 5 or less."
    lower = api.request("PATCH", path, "submitter", "default", json={"priority": -5})
    assert (lower.status_code, lower.json()["priority"]) == (200, -5)


def test_a_project_is_shown_with_its_use_to_those_who_may_see_it(api: ApiHarness):
    limits = {
        "max_queued": 9, "max_schedules": 8, "max_cpus": 7, "max_gpus": 6,
        "max_stored_bytes": 2**40, "max_priority": 4,
    }  # fmt: skip
    assert limits.items() <= set_limits(api, **limits).items()
    assert set_limits(api, max_gpus=None)["max_gpus"] is None
    submit(api), make_schedule(api, "nightly")
    shown = api.request("GET", "/v1/projects/default", "viewer", "default").json()
    assert (shown["max_queued"], shown["max_gpus"]) == (9, None)
    assert shown["usage"] == {
        "runs": 0, "workers": 0, "cpus": 0, "gpus": 0, "tokens": 0, "queued": 1, "schedules": 1,
        "stored_bytes": 0,
    }  # fmt: skip
    assert api.request("GET", "/v1/projects/default", "admin", "other").status_code == 404
    assert api.request("GET", "/v1/projects/nowhere").status_code == 404


def test_limits_out_of_range_are_refused(api: ApiHarness):
    for limit, value in (
        ("max_queued", -1), ("max_queued", 2**31), ("max_cpus", 2**63), ("max_priority", 1001),
        ("max_stored_bytes", 10**4000), ("max_schedules", True), ("max_gpus", 1.5),
    ):  # fmt: skip
        response = api.request("PATCH", "/v1/projects/default", json={limit: value})
        assert response.status_code == 422, (limit, value)


def test_a_body_with_many_values_is_refused_before_it_is_validated(api: ApiHarness):
    unknown = {f"k{number}": 1 for number in range(60_000)}
    for body in ({**unknown, "spec": {}}, {"spec": unknown}, {"spec": {"a": [[]] * 60_000}}):
        response = api.request("POST", "/v1/runs", json=body)
        assert response.status_code == 422 and len(response.content) < 1000
        assert "more than 10,000 keys and values" in response.json()["detail"]
