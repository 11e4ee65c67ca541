"""Permissions of every route: each scope, project and kind of token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text

from orchestrator.api.document import build_document
from orchestrator.registry import adapters, tokens
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.schedules import NewSchedule
from orchestrator.registry.schedules import add as add_schedule
from orchestrator.registry.tables import SCOPES, AdapterRow, TableBase
from tests.orchestrator.api.builders import ApiHarness

PUBLIC_PATHS = {"/healthz", "/readyz"}
FOREIGN = "foreign-secret"
"""Part of everything that belongs to the other project; no response may contain it."""


@dataclass(frozen=True)
class Route:
    """An operation of the document."""

    method: str
    path: str
    scope: str
    all_projects: bool

    @property
    def id(self) -> str:
        return f"{self.method} {self.path}"


def list_routes() -> Iterator[Route]:
    for path, operations in build_document()["paths"].items():
        for method, operation in operations.items():
            if path not in PUBLIC_PATHS:
                all_projects = operation.get("x-all-projects", False)
                yield Route(method.upper(), path, operation["x-scope"], all_projects)


ROUTES = sorted(list_routes(), key=lambda route: route.method == "DELETE")
"""All routes; the last ones delete what the others use."""
NAMED = [route for route in ROUTES if "{" in route.path]


@dataclass
class FilledService:
    """An API with a resource of each kind in both projects."""

    api: ApiHarness
    runs: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    schedules: dict[str, str] = field(default_factory=dict)
    adapters: dict[str, str] = field(default_factory=dict)

    def make_path(self, route: Route, project: str) -> str:
        """Return the path of the route for resources of a project."""
        values = {
            "run": self.runs[project],
            "token": self.tokens[project],
            "project": project,
            "name": project if "/projects/" in route.path else self._get_name(route, project),
            "version": "1",
        }
        return route.path.format(**values)

    def _get_name(self, route: Route, project: str) -> str:
        return (self.schedules if "/schedules/" in route.path else self.adapters)[project]

    def make_body(self, route: Route, project: str) -> dict[str, Any] | None:
        """Return a valid body, for this project if it can name one."""
        spec = self.api.make_spec()
        bodies: dict[tuple[str, str], dict[str, Any]] = {
            ("POST", "/v1/runs"): {"spec": spec, "project": project},
            ("POST", "/v1/runs/check"): {"spec": spec, "project": project},
            ("POST", "/v1/adapters/{name}/promote"): {"version": 1},
            ("POST", "/v1/schedules"): {
                "name": "new",
                "project": project,
                "cron": "0 3 * * *",
                "kind": "finetune",
                "spec": spec,
            },
            ("PATCH", "/v1/schedules/{project}/{name}"): {"paused": True},
            ("POST", "/v1/deployments"): {
                "adapter": self.adapters[project],
                "endpoint": "local",
                "project": project,
            },
            ("POST", "/v1/projects"): {"name": "new"},
            ("PATCH", "/v1/projects/{name}"): {"max_runs": 1},
            ("POST", "/v1/tokens"): {"label": "new", "scope": "viewer", "project": project},
        }
        return bodies.get((route.method, route.path))

    def request(
        self, route: Route, scope: str | None, owner: str | None, project: str, **options: Any
    ) -> Any:
        """Request the route for resources of `project`, with a token of `owner`."""
        if route.path.endswith("/log"):
            options["params"] = {"follow": "false"}
        body = self.make_body(route, project)
        path = self.make_path(route, project)
        return self.api.request(route.method, path, scope, owner, json=body, **options)

    @contextmanager
    def undo_changes(self) -> Iterator[None]:
        """Put the database back at the end of the block: the next request finds what it found."""
        database = self.api.service.database
        with database.read() as session:
            saved = {
                table: [row._asdict() for row in session.execute(select(table))]
                for table in TableBase.metadata.sorted_tables
                # Its triggers refuse that, and no route depends on it.
                if table.name != "audit"
            }
        yield
        with database.write() as session:
            for table in reversed(saved):
                session.execute(delete(table))
            for table, rows in saved.items():
                if rows:
                    session.execute(insert(table), rows)

    def dump_rows(self) -> list[str]:
        """Return all rows of the database, to detect changes."""
        with self.api.service.database.read() as session:
            tables = ("runs", "schedules", "tokens", "projects", "adapters", "pointers", "firings")
            return [
                f"{table} {row}"
                for table in tables
                for row in sorted(map(str, session.execute(text(f"SELECT * FROM {table}"))))
            ]


@pytest.fixture
def filled(api: ApiHarness) -> FilledService:
    service = FilledService(api)
    for project in ("default", "other"):
        mark = "" if project == "default" else FOREIGN
        service.runs[project] = api.submit(project)
        service.schedules[project] = f"nightly{mark}"
        service.adapters[project] = f"chat{mark}"
        with api.service.database.write() as session:
            token, _ = tokens.issue(session, f"t{mark}", "viewer", project=project)
            service.tokens[project] = token.id
            schedule = NewSchedule(
                name=f"nightly{mark}",
                project=project,
                cron="0 3 * * *",
                spec=api.make_spec(),
                kind="finetune",
            )
            add_schedule(session, schedule, next_at=None)
            session.add(make_adapter(f"chat{mark}", project, service.runs[project]))
        # A final run's streams end by themselves.
        api.move(service.runs[project], Status.STOPPED, reason=Reason.USER)
    return service


def make_adapter(name: str, project: str, run: str) -> AdapterRow:
    return AdapterRow(
        store="file:///nowhere/",
        name=name,
        version=1,
        project=project,
        run=run,
        attempt=1,
        kind="slora",
        parent=None,
        search=None,
        base_digest="0" * 64,
        size=1,
        committed_at=1.0,
        manifest={},
    )


def test_the_document_names_a_scope_for_every_route():
    assert len(ROUTES) > 25
    assert {route.scope for route in ROUTES} == set(SCOPES)
    for path, operations in build_document()["paths"].items():
        for operation in operations.values():
            assert (path in PUBLIC_PATHS) == ("security" not in operation)


def test_every_route_requires_a_valid_token(filled: FilledService):
    api = filled.api
    with api.service.database.write() as session:
        _, expired = tokens.issue(session, "expired", "admin", seconds=-1)
        token, revoked = tokens.issue(session, "revoked", "admin")
        tokens.revoke(session, token.id)
    before = filled.dump_rows()
    headers = (
        None,
        "Bearer",
        "Bearer ",
        f"Bearer {expired}",
        f"Bearer {revoked}",
        f"Basic {api.secrets['admin', None]}",
        f"Bearer {api.secrets['admin', None]}x",
        "Bearer slora_' OR 1=1 --",
        "Bearer " + "x" * 5000,
    )
    for route, header in product(ROUTES, headers):
        case = f"{route.id} with {header}"
        sent = {} if header is None else {"Authorization": header}
        response = filled.request(route, None, None, "default", headers=sent)
        assert response.status_code == 401, case
        assert response.headers["www-authenticate"] == "Bearer", case
        assert response.json()["status"] == 401, case
    assert filled.dump_rows() == before


@pytest.mark.parametrize("owner", [None, "default"], ids=["all", "own"])
@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_allows_exactly_what_the_document_says(
    filled: FilledService, owner: str | None, scope: str
):
    for route in ROUTES:
        allowed = SCOPES.index(scope) >= SCOPES.index(route.scope)
        allowed = allowed and (owner is None or not route.all_projects)
        before = filled.dump_rows()
        with filled.undo_changes():
            response = filled.request(route, scope, owner, "default")
            if allowed:
                print("STATUS", route.id, response.status_code, response.text[:150])
                assert response.status_code not in (401, 403, 500), f"{route.id}: {response.text}"
            else:
                assert response.status_code == 403, route.id
                assert filled.dump_rows() == before, route.id
        assert filled.dump_rows() == before


@pytest.mark.parametrize("scope", SCOPES)
def test_another_projects_resources_look_absent(filled: FilledService, scope: str):
    before = filled.dump_rows()
    absent = FilledService(
        filled.api,
        runs={"other": "none-1"},
        tokens={"other": "0" * 16},
        schedules={"other": "none"},
        adapters={"other": "none"},
    )
    for route in NAMED:
        response = filled.request(route, scope, "default", "other")
        allowed = SCOPES.index(scope) >= SCOPES.index(route.scope) and not route.all_projects
        assert response.status_code == (404 if allowed else 403), f"{route.id}: {response.text}"
        assert filled.dump_rows() == before, route.id
        absent_response = absent.request(route, scope, "default", "other")
        assert absent_response.status_code == response.status_code, route.id
        problem = normalize_problem(response.json(), filled)
        assert normalize_problem(absent_response.json(), absent) == problem, route.id


def normalize_problem(problem: dict[str, Any], filled: FilledService) -> str:
    """Return a problem without the names that the request contains."""
    text = str({**problem, "request_id": None})
    for names in (filled.runs, filled.tokens, filled.adapters, filled.schedules):
        text = text.replace(names["other"], "X")
    return text


def test_lists_and_creations_stay_inside_the_project(filled: FilledService):
    before = filled.dump_rows()
    for route in (route for route in ROUTES if route not in NAMED):
        response = filled.request(route, "admin", "default", "other")
        assert FOREIGN not in response.text, route.id
        assert filled.runs["other"] not in response.text, route.id
        if route.method == "POST":
            assert response.status_code in (403, 404), route.id
        assert filled.dump_rows() == before, route.id


def test_a_list_of_another_project_is_empty(filled: FilledService):
    params = {"project": "other"}
    empty = filled.api.request("GET", "/v1/deployments", "admin", "default", params=params)
    assert empty.json() == {"items": [], "next": None}
    for path in ("/v1/runs", "/v1/adapters", "/v1/schedules"):
        response = filled.api.request("GET", path, "admin", "default", params={"project": "other"})
        assert response.json() == {"items": [], "next": None}
        own = filled.api.request("GET", path, "viewer", "other").json()["items"]
        assert [item["project"] for item in own] == ["other"]


def test_a_revoked_token_is_refused_at_once(api: ApiHarness):
    token = api.request("POST", "/v1/tokens", json={"label": "ci", "scope": "admin"}).json()
    headers = {"Authorization": f"Bearer {token['secret']}"}
    assert api.client.get("/v1/me", headers=headers).status_code == 200
    assert api.request("DELETE", f"/v1/tokens/{token['id']}").status_code == 204
    assert api.client.get("/v1/me", headers=headers).status_code == 401


def test_no_list_shows_a_tokens_secret(api: ApiHarness):
    response = api.request("POST", "/v1/tokens", json={"label": "ci", "scope": "viewer"})
    assert response.headers["cache-control"] == "no-store"
    assert response.json()["secret"] not in api.request("GET", "/v1/tokens").text


def test_a_pointer_shared_by_two_projects_is_moved_by_neither(filled: FilledService):
    with filled.api.service.database.write() as session:
        row = make_adapter("chat", "other", filled.runs["other"])
        row.version = 2
        session.add(row)
    for action, body in (("promote", {"version": 1}), ("rollback", None)):
        path = f"/v1/adapters/chat/{action}"
        response = filled.api.request("POST", path, "admin", "default", json=body)
        assert response.status_code == 409
    with filled.api.service.database.read() as session:
        assert adapters.get_pointer(session, "file:///nowhere/", "chat") is None
