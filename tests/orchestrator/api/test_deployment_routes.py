"""Deployments through the service: routes, projects, the audit log, and the thread that follows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.client.client import ServiceClient
from orchestrator.registry import adapters
from orchestrator.registry.database import Database
from orchestrator.registry.tenancy import audit_log
from tests.orchestrator.api.builders import ApiHarness, open_harness, serve_app
from tests.orchestrator.deployments.builders import commit_promoted
from tests.orchestrator.deployments.fake_vllm import API_KEY, FakeVllm

BODY = {"adapter": "chat", "endpoint": "local"}


class Served:
    """A service with the endpoint `local` for two projects, `own` and `mine` for one each."""

    def __init__(self, api: ApiHarness, fake: FakeVllm, folder: Path) -> None:
        self.api, self.fake, self.folder = api, fake, folder
        self.store = open_store(api.service.config.stores[0])

    def follow(self) -> None:
        self.api.service.deployments.retry_soon()
        self.api.service.deployments.follow_all()

    def release(self, store: ObjectStore | None = None) -> None:
        commit_promoted(store or self.store, self.folder)

    def ask(self, method: str, path: str = "", **options: Any) -> Any:
        return self.api.request(method, f"/v1/deployments{path}", **options)


@contextmanager
def open_served(
    migrated_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Served]:
    shutil.copy(migrated_file, folder / "light.db")
    database = Database(f"sqlite:///{folder / 'light.db'}")
    monkeypatch.setenv("FAKE_KEY", API_KEY)
    fake = FakeVllm()
    with fake.serve() as url:
        common = {"url": url, "api_key_env": "FAKE_KEY", "folder": str(folder / "copies")}
        serving = {
            "local": {**common, "projects": ["default", "other"]},
            "own": {**common, "projects": ["other"]},
            "mine": {**common, "projects": ["default"]},
        }
        store = f"file://{folder / 'store'}"
        with open_harness(database, store, serving=serving) as api:
            yield Served(api, fake, folder / "folders")
    database.close()


@pytest.fixture
def served(
    migrated_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Served]:
    with open_served(migrated_file, tmp_path, monkeypatch) as served:
        yield served


def test_a_deployment_is_made_followed_rolled_back_and_removed_with_an_audit(served: Served):
    served.release()
    created = served.ask("POST", json={**BODY, "canary": {"prompts": ["Hello"]}})
    assert (created.status_code, created.json()["status"]) == (201, "rolling_out"), created.text
    served.follow()
    assert served.fake.names == {"chat": "chat@v1"}
    served.release()
    served.follow()
    shown = served.ask("GET", "/chat").json()
    assert (shown["live"], shown["previous"], shown["model"]) == (2, 1, "chat")
    assert shown["canary"]["prompts"] == ["Hello"]
    assert [item["name"] for item in served.ask("GET").json()["items"]] == ["chat"]
    rolled = served.ask("POST", "/chat/rollback")
    assert (rolled.status_code, rolled.json()["live"]) == (200, 1)
    assert served.fake.names == {"chat": "chat@v1"}
    assert served.ask("POST", "/chat/rollback").status_code == 409
    assert served.ask("DELETE", "/chat").status_code == 202
    served.follow()
    assert (served.fake.names, served.fake.adapters) == ({}, {})
    assert served.ask("GET", "/chat").status_code == 404
    with served.api.service.database.read() as session:
        entries = audit_log.list_entries(session, object_kind="deployment")
    assert [entry.action for entry in reversed(entries)] == [
        *("deploy", "live", "rollout_started", "live"),
        *("rollback", "remove", "removed"),
    ]
    assert [entry.label for entry in entries if entry.action == "rollback"] == ["test"]
    assert API_KEY not in str(entries)


def test_a_promotion_through_the_service_wakes_the_follower(served: Served, tmp_path: Path):
    for _ in range(2):
        manifest = commit_promoted(served.store, served.folder)
        with served.api.service.database.write() as session:
            adapters.put(session, served.api.service.config.stores[0], manifest, project="default")
    served.ask("POST", json=BODY)
    tasks = {task.name: task for task in served.api.service._tasks}
    tasks["deployments"].wake.clear()
    assert served.api.request("POST", "/v1/adapters/chat/rollback").status_code == 200
    assert tasks["deployments"].wake.is_set()


@pytest.mark.parametrize(
    ("change", "status", "problem"),
    [
        ({"endpoint": "own"}, 422, "is no endpoint of this project"),
        ({"endpoint": "absent"}, 422, "is no endpoint of this project"),
        ({"adapter": "absent"}, 404, "is not in the store"),
        ({"version": 9}, 404, "is not in the store"),
        ({"store": "file:///elsewhere"}, 422, "is no store of this service"),
        ({"canary": {"max_latency_s": 0}}, 422, "greater than 0"),
        ({"key": "secret"}, 422, "key"),
    ],
)
def test_what_cannot_be_deployed_is_refused_and_nothing_is_recorded(
    served: Served, change: dict[str, Any], status: int, problem: str
):
    served.release()
    refused = served.ask("POST", json={**BODY, **change})
    assert (refused.status_code, problem in refused.text) == (status, True), refused.text
    assert served.ask("GET").json()["items"] == []


def test_a_server_that_does_not_answer_is_503_and_told_by_the_deployment(
    served: Served, monkeypatch: pytest.MonkeyPatch
):
    served.release()
    served.ask("POST", json=BODY)
    monkeypatch.delenv("FAKE_KEY")
    assert served.ask("POST", json=BODY).status_code == 503
    served.follow()
    problem = served.ask("GET", "/chat").json()["problem"]
    assert "FAKE_KEY holds no API key" in problem
    monkeypatch.setenv("FAKE_KEY", API_KEY)
    served.follow()
    assert served.ask("GET", "/chat").json()["problem"] is None


def test_projects_have_names_and_deployments_of_their_own(served: Served):
    other = open_store(f"{served.api.service.config.stores[0]}/projects/other")
    for store in (served.store, other):
        commit_promoted(store, served.folder)
    served.ask("POST", json=BODY, scope="submitter", project="default")
    made = served.ask("POST", json=BODY, scope="submitter", project="other")
    assert (made.status_code, made.json()["project"]) == (201, "other"), made.text
    served.follow()
    assert served.fake.names == {"chat": "chat@v1", "other..chat": "other..chat@v1"}
    for path in ("/chat?project=other", "/chat/rollback?project=other"):
        method = "POST" if "rollback" in path else "GET"
        refused = served.ask(method, path, scope="submitter", project="default")
        assert refused.status_code == 404
    mine = served.ask("GET", scope="viewer", project="other").json()["items"]
    assert [item["model"] for item in mine] == ["other..chat"]
    assert served.ask("DELETE", "/chat", scope="viewer", project="other").status_code == 403
    served.ask("DELETE", "/chat", scope="submitter", project="other")
    served.follow()
    assert served.fake.names == {"chat": "chat@v1"}


def test_a_written_record_reaches_no_endpoint_of_another_project(served: Served):
    """Jobs of a project may write to its part of the store, where records lie."""
    other = open_store(f"{served.api.service.config.stores[0]}/projects/other")
    for store in (served.store, other):
        commit_promoted(store, served.folder)
    served.ask("POST", json={**BODY, "endpoint": "mine"}, project="default")
    other.put("deployments/chat.json", served.store.get("deployments/chat.json"))
    served.follow()
    # The server was opened for the first project in the same round.
    assert served.fake.names == {"chat": "chat@v1"}
    record = served.ask("GET", "/chat", scope="viewer", project="other").json()
    assert "'mine' is no endpoint of this project" in record["problem"]


def test_one_bad_deployment_does_not_stop_the_others(served: Served):
    served.release()
    served.ask("POST", json=BODY)
    served.store.put("deployments/bad.json", b"{")
    record = served.store.get("deployments/chat.json")
    alone = record.replace(b'"name": "chat"', b'"name": "away"')
    alone = alone.replace(b'"endpoint": "local"', b'"endpoint": "http://127.0.0.1:1"')
    served.store.put("deployments/away.json", alone)
    served.follow()
    assert served.fake.names == {"chat": "chat@v1"}
    assert "is no endpoint of this project" in served.ask("GET", "/away").json()["problem"]
    listed = {item["name"]: item["status"] for item in served.ask("GET").json()["items"]}
    assert listed == {"away": "rolling_out", "bad": "unreadable", "chat": "live"}
    # Its server is not the service's any more, so that nothing but the record is removed.
    served.ask("DELETE", "/away")
    served.follow()
    assert served.ask("GET", "/away").status_code == 404


def test_a_second_service_waits_for_the_lease(served: Served):
    served.release()
    served.ask("POST", json=BODY)
    service = served.api.service
    rival = type(service)(service.config, service.database, service.clusters)
    assert rival.deployments.follow_all() == 1
    assert service.deployments.follow_all() == 0
    rival.deployments.close()
    assert service.deployments.follow_all() == 1


def test_pages_of_deployments_follow_each_other(served: Served):
    served.release()
    for name in ("a", "b", "c"):
        served.ask("POST", json={**BODY, "name": name})
    first = served.ask("GET", "?limit=2").json()
    second = served.ask("GET", f"?limit=2&cursor={first['next']}").json()
    assert [item["name"] for item in first["items"] + second["items"]] == ["a", "b", "c"]
    assert second["next"] is None


def test_the_client_has_a_method_for_each_route(served: Served):
    served.release()
    secret = served.api.secrets["submitter", "default"]
    with serve_app(served.api.app) as url, ServiceClient(url, secret) as client:
        assert client.deployments.create(BODY).pin is None
        served.follow()
        assert [item.live for item in client.deployments.list()] == [1]
        served.release()
        served.follow()
        assert client.deployments.rollback("chat").live == 1
        assert client.deployments.get("chat").history[-1].event == "rolled_back"
        assert client.deployments.remove("chat").status == "removing"
