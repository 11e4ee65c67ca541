"""Over HTTP: a submission outside its places is 422, and a store selects its project's part."""

from __future__ import annotations

from pathlib import Path

from jobs.store.open import open_store
from orchestrator.registry.rebuild.rebuild_projects import rebuild_projects
from tests.orchestrator.api.builders import ApiHarness
from tests.orchestrator.registry.stores import commit_version


def test_what_an_administrator_sets_is_what_a_submitter_may_name(api: ApiHarness):
    changes = {"places": ["/data/"], "models": ["/models/tiny"]}
    assert api.request("PATCH", "/v1/projects/other", json=changes).json()["places"] == ["/data"]
    body = {"spec": api.make_spec()}
    run = api.request("POST", "/v1/runs", "submitter", "other", json=body)
    assert run.status_code == 201 and run.json()["store"].endswith("/projects/other")
    body["spec"]["data"] = {"train": "/data/../etc/passwd"}
    for route in ("/v1/runs", "/v1/runs/check"):
        problem = api.request("POST", route, "submitter", "other", json=body)
        assert problem.status_code == 422
        assert [error["key"] for error in problem.json()["errors"]] == ["data.train"]
    assert api.request("POST", "/v1/runs", "submitter", "default", json=body).status_code == 201


def test_a_submitter_sets_no_places(api: ApiHarness):
    for scope, project in (("submitter", "other"), ("admin", "other")):
        response = api.request("PATCH", "/v1/projects/other", scope, project, json={"places": None})
        assert response.status_code == 403


def test_a_configured_store_selects_the_projects_part_of_it(api: ApiHarness, tmp_path: Path):
    root = api.service.config.stores[0]
    for url in (root, f"{root}/projects/other"):
        commit_version(open_store(url), tmp_path / "adapter")
    rebuild_projects(api.service.database, open_store(root))
    for store in (root, f"{root}/", f"{root}/projects/other"):
        path = f"/v1/adapters/chat?store={store}"
        body = api.request("GET", path, "viewer", "other").json()
        assert (body["store"], len(body["versions"])) == (f"{root}/projects/other", 1)
    path = f"/v1/adapters/chat?store={root}/projects/default"
    assert api.request("GET", path, "viewer", "other").status_code == 404
    promoted = api.request(
        "POST", "/v1/adapters/chat/promote", "submitter", "other", json={"version": 1}
    )
    assert promoted.json()["store"] == f"{root}/projects/other"
