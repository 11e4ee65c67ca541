"""The audit log of the API: every change is in it once, with its maker, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from jobs.store.open import open_store
from orchestrator.deployments.deployment_record import DeploymentRecord, write_deployment
from orchestrator.deployments.endpoint_config import EndpointConfig
from orchestrator.registry import adapters
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.rebuild.rebuild import rebuild
from orchestrator.registry.tenancy.audit_log import list_entries
from orchestrator.schemas.audit_entries import AuditEntryResponse
from tests.orchestrator.api.builders import ApiHarness, serve_app
from tests.orchestrator.deployments.fake_vllm import API_KEY, FakeVllm
from tests.orchestrator.registry.builders import read_rows
from tests.orchestrator.registry.stores import commit_version

READING = {"GET", "HEAD"}
CHECK = ("POST", "/v1/runs/check")
"""The only route that changes nothing although it does not only read."""


@dataclass(frozen=True)
class Change:
    """A request that changes something, and the entry that it must leave."""

    path: str
    body: dict[str, Any] | None
    entry: tuple[str, str]
    """Action and kind of object."""


@dataclass
class AuditedService:
    """An API with something to change for every route."""

    api: ApiHarness
    run: str
    ended_run: str
    token: str
    secrets: list[str]

    def list_changes(self) -> dict[tuple[str, str], Change]:
        """List a change for every route: method, path of the route, request."""
        spec = self.api.make_spec()
        schedule = {"name": "nightly", "cron": "0 3 * * *", "kind": "finetune", "spec": spec}
        return {
            ("POST", "/v1/runs"): Change("/v1/runs", {"spec": spec}, ("submit", "run")),
            ("POST", "/v1/runs/{run}/stop"): Change(
                f"/v1/runs/{self.run}/stop", None, ("stop", "run")
            ),
            ("DELETE", "/v1/runs/{run}"): Change(
                f"/v1/runs/{self.ended_run}", None, ("delete", "run")
            ),
            ("POST", "/v1/schedules"): Change("/v1/schedules", schedule, ("create", "schedule")),
            ("PATCH", "/v1/schedules/{project}/{name}"): Change(
                "/v1/schedules/default/nightly", {"paused": True}, ("change", "schedule")
            ),
            ("DELETE", "/v1/schedules/{project}/{name}"): Change(
                "/v1/schedules/default/nightly", None, ("delete", "schedule")
            ),
            ("POST", "/v1/adapters/{name}/promote"): Change(
                "/v1/adapters/chat/promote", {"version": 2}, ("promote", "adapter")
            ),
            ("POST", "/v1/adapters/{name}/rollback"): Change(
                "/v1/adapters/chat/rollback", None, ("rollback", "adapter")
            ),
            ("POST", "/v1/deployments"): Change(
                "/v1/deployments",
                {"adapter": "chat", "endpoint": "local"},
                ("deploy", "deployment"),
            ),
            ("POST", "/v1/deployments/{name}/rollback"): Change(
                "/v1/deployments/two/rollback", None, ("rollback", "deployment")
            ),
            ("DELETE", "/v1/deployments/{name}"): Change(
                "/v1/deployments/two", None, ("remove", "deployment")
            ),
            ("POST", "/v1/projects"): Change(
                "/v1/projects", {"name": "lab", "max_runs": 4}, ("create", "project")
            ),
            ("PATCH", "/v1/projects/{name}"): Change(
                "/v1/projects/lab", {"max_runs": 8}, ("change", "project")
            ),
            ("POST", "/v1/tokens"): Change(
                "/v1/tokens", {"label": "new", "scope": "viewer"}, ("create", "token")
            ),
            ("DELETE", "/v1/tokens/{token}"): Change(
                f"/v1/tokens/{self.token}", None, ("revoke", "token")
            ),
        }

    def send(self, route: tuple[str, str], **options: Any) -> Any:
        """Make the change of a route."""
        change = self.list_changes()[route]
        return self.api.request(route[0], change.path, json=change.body, **options)

    def send_all(self) -> None:
        for route in self.list_changes():
            response = self.send(route)
            assert response.status_code < 300, f"{route}: {response.text}"
            if route == ("POST", "/v1/tokens"):
                self.secrets.append(response.json()["secret"])

    def count(self) -> int:
        return len(read_rows(self.api.service.database, "audit"))

    def read_newest(self) -> AuditEntryResponse:
        with self.api.service.database.read() as session:
            return AuditEntryResponse.model_validate(list_entries(session, limit=1)[0])


@pytest.fixture
def audited(
    database_api: ApiHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AuditedService]:
    store = open_store(database_api.service.config.stores[0])
    for number in (1, 2):
        commit_version(store, tmp_path / f"v{number}", run=f"chat-20260101-12000{number}-0a1b")
    rebuild(database_api.service.database, store)
    run = database_api.submit()
    created = database_api.request("POST", "/v1/tokens", json={"label": "old", "scope": "viewer"})
    token = created.json()
    promoted = database_api.request("POST", "/v1/adapters/chat/promote", json={"version": 1})
    assert promoted.status_code == 200, promoted.text
    ended_run = database_api.submit()
    database_api.move(ended_run, Status.STOPPED, reason=Reason.USER)
    monkeypatch.setenv("FAKE_KEY", API_KEY)
    with FakeVllm().serve() as url:
        endpoint = EndpointConfig(url=url, api_key_env="FAKE_KEY", folder=str(tmp_path / "copies"))
        database_api.service.config.serving["local"] = endpoint
        deployment = DeploymentRecord(
            name="two", adapter="chat", endpoint="local", live=2, previous=1
        )
        write_deployment(store, deployment, None)
        yield AuditedService(database_api, run, ended_run, token["id"], [token["secret"]])


def list_changing_routes(routes: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """List the routes of an app, also those of the routers that it includes."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield from ((method, route.path) for method in route.methods - READING)
        elif hasattr(route, "original_router"):
            yield from list_changing_routes(route.original_router.routes)


def test_every_route_that_changes_something_writes_one_entry(audited: AuditedService):
    changes = audited.list_changes()
    assert set(list_changing_routes(audited.api.app.routes)) == {*changes, CHECK}
    for route, change in changes.items():
        before = audited.count()
        response = audited.send(route, headers={"X-Request-Id": "my-request"})
        assert response.status_code < 300, f"{route}: {response.text}"
        assert audited.count() == before + 1, route
        entry = audited.read_newest()
        assert (entry.action, entry.object_kind) == change.entry, route
        assert (entry.label, entry.request_id) == ("test", "my-request"), route
        assert entry.address == "testclient" and len(entry.token or "") == 16, route


def test_a_check_of_a_submission_writes_nothing(audited: AuditedService):
    before = audited.count()
    response = audited.api.request(*CHECK, json={"spec": audited.api.make_spec()})
    assert response.status_code == 200 and audited.count() == before


def test_an_entry_has_what_was_before_and_after(audited: AuditedService):
    audited.send_all()
    values: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in read_entries(audited.api):
        values.setdefault((entry["action"], entry["object_kind"]), entry)
    project = values["change", "project"]
    assert (project["before"], project["after"]) == ({"max_runs": 4}, {"max_runs": 8})
    assert (project["object"], project["project"]) == ("lab", "lab")
    schedule = values["change", "schedule"]
    assert (schedule["before"], schedule["after"]) == ({"paused": False}, {"paused": True})
    created = values["create", "schedule"]["after"]
    assert created["cron"] == "0 3 * * *" and len(created["spec_sha256"]) == 64
    assert "spec" not in created
    promoted = values["promote", "adapter"]
    assert promoted["before"] == {"version": 1, "move": 1}
    assert (promoted["after"]["version"], promoted["after"]["move"]) == (2, 2)
    assert promoted["after"]["store"].startswith("file://")
    rollback = values["rollback", "adapter"]
    assert (rollback["before"]["version"], rollback["after"]["version"]) == (2, 1)
    stop = values["stop", "run"]
    assert (stop["object"], stop["before"], stop["after"]) == (
        *(audited.run, {"status": "planned"}, {"stop": "user"}),
    )
    deleted = values["delete", "run"]
    assert (deleted["object"], deleted["before"]["status"]) == (audited.ended_run, "stopped")
    assert deleted["after"] == {"files": 1, "retained_files": 0}
    assert values["submit", "run"]["after"]["name"] == "chat"
    assert values["revoke", "token"]["before"] == {"label": "old", "scope": "viewer"}


def test_no_entry_holds_a_secret_or_its_digest(audited: AuditedService):
    audited.send_all()
    assert len(audited.secrets) == 2
    log = str(read_rows(audited.api.service.database, "audit"))
    for secret in (*audited.secrets, *audited.api.secrets.values()):
        assert secret not in log and sha256(secret.encode()).hexdigest() not in log


def test_a_request_that_changes_nothing_writes_nothing(audited: AuditedService):
    api = audited.api
    audited.send(("POST", "/v1/schedules"))
    audited.send(("POST", "/v1/projects"))
    audited.send(("DELETE", "/v1/tokens/{token}"))
    audited.send(("POST", "/v1/runs/{run}/stop"))
    ended = api.submit()
    api.move(ended, Status.STOPPED, reason=Reason.USER)
    submission = {"json": {"spec": api.make_spec()}, "headers": {"Idempotency-Key": "k"}}
    api.request("POST", "/v1/runs", **submission)
    before = audited.count()
    harmless: list[tuple[str, str, Any]] = [
        ("DELETE", f"/v1/tokens/{audited.token}", None),
        ("POST", f"/v1/runs/{audited.run}/stop", None),
        ("POST", f"/v1/runs/{ended}/stop", None),
        ("POST", "/v1/adapters/chat/promote", {"version": 1}),
        ("PATCH", "/v1/projects/lab", {"max_runs": 4}),
        ("PATCH", "/v1/schedules/default/nightly", {}),
        ("PATCH", "/v1/schedules/default/nightly", {"paused": False}),
    ]
    for method, path, body in harmless:
        assert api.request(method, path, json=body).status_code < 300, path
    assert api.request("POST", "/v1/runs", **submission).status_code == 200
    refused: list[tuple[str, str, Any]] = [
        ("POST", "/v1/projects", {"name": "lab"}),
        ("PATCH", "/v1/projects/lab", {"max_runs": 5, "revision": 99}),
        ("DELETE", "/v1/schedules/default/none", None),
        ("DELETE", f"/v1/tokens/{'0' * 16}", None),
        ("DELETE", f"/v1/runs/{audited.run}", None),
        ("POST", "/v1/adapters/chat/promote", {"version": 9}),
        ("POST", "/v1/runs", {"spec": {}}),
    ]
    for method, path, body in refused:
        assert api.request(method, path, json=body).status_code >= 400, path
    assert audited.count() == before


def test_a_promotion_is_recorded_by_the_retry_after_the_database_failed(audited: AuditedService):
    """The store moved, and the registry did not: the next request of the same catches up."""
    with audited.api.service.database.write() as session:
        (version,) = adapters.list_page(session, name="chat", limit=1)
        assert adapters.get_pointer(session, version.store, "chat") is not None
        adapters.remove_pointer(session, version.store, "chat")
    before = audited.count()
    audited.api.request("POST", "/v1/adapters/chat/promote", json={"version": 1})
    assert audited.count() == before + 1
    assert audited.read_newest().action == "promote"


def read_entries(api: ApiHarness, owner: str | None = None, **filters: Any) -> list[dict[str, Any]]:
    """Read all pages of two entries each."""
    entries: list[dict[str, Any]] = []
    cursor = None
    while True:
        params = {"limit": 2, **filters, **({} if cursor is None else {"cursor": cursor})}
        page = api.request("GET", "/v1/audit", "admin", owner, params=params).json()
        entries += page["items"]
        cursor = page["next"]
        if cursor is None:
            return entries


def test_an_admin_of_a_project_sees_its_entries_only(audited: AuditedService):
    api = audited.api
    audited.send_all()
    other_run = api.submit("other")
    everything = read_entries(api)
    assert [entry["id"] for entry in everything] == sorted(
        (entry["id"] for entry in everything), reverse=True
    )
    assert len(everything) == audited.count()
    own = read_entries(api, "other")
    assert [entry["object"] for entry in own] == [other_run]
    assert read_entries(api, "other", project="default") == []
    assert {entry["project"] for entry in read_entries(api, "default")} == {"default"}
    for scope in ("viewer", "submitter"):
        assert api.request("GET", "/v1/audit", scope).status_code == 403


def test_entries_are_selected_by_every_filter(audited: AuditedService):
    audited.send_all()
    everything = read_entries(audited.api)
    filters: dict[str, tuple[Any, Callable[[dict[str, Any]], bool]]] = {
        "project": ("lab", lambda entry: entry["project"] == "lab"),
        "action": ("create", lambda entry: entry["action"] == "create"),
        "kind": ("run", lambda entry: entry["object_kind"] == "run"),
        "object": (audited.run, lambda entry: entry["object"] == audited.run),
        "token": (everything[0]["token"], lambda entry: entry["token"] == everything[0]["token"]),
        "since": (everything[3]["at"], lambda entry: entry["at"] >= everything[3]["at"]),
        "until": (everything[3]["at"], lambda entry: entry["at"] < everything[3]["at"]),
    }
    for name, (value, selects) in filters.items():
        expected = [entry for entry in everything if selects(entry)]
        assert expected and read_entries(audited.api, **{name: value}) == expected, name
    assert audited.api.request("GET", "/v1/audit", params={"since": "nan"}).status_code == 422


def test_a_run_and_a_schedule_name_their_maker(database_api: ApiHarness):
    me = database_api.request("GET", "/v1/me", "submitter", "default").json()
    body = {"spec": database_api.make_spec()}
    run = database_api.request("POST", "/v1/runs", "submitter", "default", json=body).json()
    detail = database_api.request("GET", f"/v1/runs/{run['id']}").json()
    listed = database_api.request("GET", "/v1/runs").json()["items"][0]
    for response in (run, detail, listed):
        assert (response["by_token"], response["by_label"]) == (me["id"], "test")
    schedule = {"name": "nightly", "cron": "0 3 * * *", "kind": "finetune", **body}
    created = database_api.request("POST", "/v1/schedules", "submitter", "default", json=schedule)
    assert (created.json()["by_token"], created.json()["by_label"]) == (me["id"], "test")


def test_a_day_of_housekeeping_expires_old_entries_once(audited: AuditedService):
    service = audited.api.service
    database = service.database
    assert service.config.audit_days == 400
    with database.write() as session:
        session.connection().exec_driver_sql(
            "INSERT INTO audit (at, action, object_kind, object) VALUES (1.0, 'stop', 'run', 'old')"
        )
    service.run_housekeeping()
    assert "old" not in {row["object"] for row in read_rows(database, "audit")}
    assert json.loads(json.dumps(audited.read_newest().after)) == {"deleted": 1}
    before = audited.count()
    service.run_housekeeping()
    assert audited.count() == before


@pytest.mark.parametrize(
    ("proxies", "sent", "address"),
    [
        pytest.param((), "192.0.2.7", "127.0.0.1", id="a client that lies"),
        pytest.param(("127.0.0.1",), "192.0.2.7", "192.0.2.7", id="a proxy"),
        pytest.param(("127.0.0.0/8",), "6.6.6.6, 192.0.2.7", "192.0.2.7", id="both"),
        pytest.param(("10.0.0.0/8",), "192.0.2.7", "127.0.0.1", id="another proxy"),
    ],
)
def test_an_address_comes_from_a_header_only_behind_a_proxy_that_is_trusted(
    api: ApiHarness, proxies: tuple[str, ...], sent: str, address: str
):
    api.service.config = api.service.config.model_copy(update={"trusted_proxies": proxies})
    headers = {
        "Authorization": f"Bearer {api.secrets['admin', None]}",
        "X-Forwarded-For": sent,
    }
    with serve_app(api.app) as url:
        answer = httpx.post(f"{url}/v1/projects", headers=headers, json={"name": "lab"})
    assert answer.status_code == 201
    assert [entry["address"] for entry in read_entries(api)] == [address]
