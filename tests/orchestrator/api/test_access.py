"""Who may do what, for every route of the document: each scope, project and kind of token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.api.app import make_app
from orchestrator.registry import adapters, tokens
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.models import SCOPES, AdapterRow
from orchestrator.registry.schedules import NewSchedule
from orchestrator.registry.schedules import add as add_schedule
from tests.orchestrator.api.made import Door, Logs, service_of

OPEN = {"/healthz", "/readyz"}
FOREIGN = "foreign-secret"
"""Stands in everything that belongs to the other project, and must not be in any answer."""


@dataclass(frozen=True)
class Route:
    """One operation of the document."""

    method: str
    path: str
    scope: str
    everywhere: bool

    @property
    def id(self) -> str:
        return f"{self.method} {self.path}"


def documented() -> dict[str, Any]:
    service = service_of(None, "file:///nowhere", Logs())  # type: ignore[arg-type]
    return make_app(service).openapi()


def routes() -> Iterator[Route]:
    for path, operations in documented()["paths"].items():
        for method, about in operations.items():
            if path not in OPEN:
                everywhere = about.get("x-all-projects", False)
                yield Route(method.upper(), path, about["x-scope"], everywhere)


ROUTES = list(routes())
NAMED = [route for route in ROUTES if "{" in route.path]


@dataclass
class Filled:
    """A door with a thing of each kind in either project."""

    door: Door
    runs: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    schedules: dict[str, str] = field(default_factory=dict)
    adapters: dict[str, str] = field(default_factory=dict)

    def path(self, route: Route, project: str) -> str:
        """The route's path, naming things of a project."""
        named = {
            "run": self.runs[project],
            "token": self.tokens[project],
            "project": project,
            "name": project if "/projects/" in route.path else self._name(route, project),
            "version": "1",
        }
        return route.path.format(**named)

    def _name(self, route: Route, project: str) -> str:
        return (self.schedules if "/schedules/" in route.path else self.adapters)[project]

    def body(self, route: Route, project: str) -> dict[str, Any] | None:
        """One that does something, to that project where it can say so."""
        spec = self.door.spec()
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
            ("POST", "/v1/projects"): {"name": "new"},
            ("PATCH", "/v1/projects/{name}"): {"max_runs": 1},
            ("POST", "/v1/tokens"): {"label": "new", "scope": "viewer", "project": project},
        }
        return bodies.get((route.method, route.path))

    def ask(
        self, route: Route, scope: str | None, owner: str | None, project: str, **more: Any
    ) -> Any:
        """The route for a project's things, by a bearer of another or the same."""
        if route.path.endswith("/log"):
            more["params"] = {"follow": "false"}
        body = self.body(route, project)
        path = self.path(route, project)
        return self.door.ask(route.method, path, scope, owner, json=body, **more)

    def rows(self) -> list[str]:
        """All that is kept, to see that nothing changed."""
        with self.door.service.database.read() as session:
            tables = ("runs", "schedules", "tokens", "projects", "adapters", "pointers", "firings")
            return [
                f"{table} {row}"
                for table in tables
                for row in sorted(map(str, session.execute(text(f"SELECT * FROM {table}"))))
            ]


@pytest.fixture
def filled(light: Door) -> Filled:
    made = Filled(light)
    for project in ("default", "other"):
        mark = "" if project == "default" else FOREIGN
        made.runs[project] = light.submitted(project)
        made.schedules[project] = f"nightly{mark}"
        made.adapters[project] = f"chat{mark}"
        with light.service.database.write() as session:
            token, _ = tokens.issue(session, f"t{mark}", "viewer", project=project)
            made.tokens[project] = token.id
            new = NewSchedule(
                name=f"nightly{mark}",
                project=project,
                cron="0 3 * * *",
                spec=light.spec(),
                kind="finetune",
            )
            add_schedule(session, new, next_at=None)
            session.add(_adapter(f"chat{mark}", project, made.runs[project]))
        # A final run's streams end by themselves.
        light.move(made.runs[project], Status.STOPPED, reason=Reason.USER)
    return made


def _adapter(name: str, project: str, run: str) -> AdapterRow:
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


def test_the_document_says_of_every_route_who_may():
    assert len(ROUTES) > 25
    assert {route.scope for route in ROUTES} == set(SCOPES)
    for path, operations in documented()["paths"].items():
        for about in operations.values():
            assert (path in OPEN) == ("security" not in about)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.id)
def test_nobody_passes_without_a_living_token(filled: Filled, route: Route):
    door = filled.door
    with door.service.database.write() as session:
        _, expired = tokens.issue(session, "expired", "admin", seconds=-1)
        gone, revoked = tokens.issue(session, "revoked", "admin")
        tokens.revoke(session, gone.id)
    before = filled.rows()
    for given in (
        None,
        "Bearer",
        "Bearer ",
        f"Bearer {expired}",
        f"Bearer {revoked}",
        f"Basic {door.words['admin', None]}",
        f"Bearer {door.words['admin', None]}x",
        "Bearer slora_' OR 1=1 --",
        "Bearer " + "x" * 5000,
    ):
        headers = {} if given is None else {"Authorization": given}
        answer = filled.ask(route, None, None, "default", headers=headers)
        assert answer.status_code == 401, given
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["status"] == 401
    assert filled.rows() == before


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.id)
@pytest.mark.parametrize("owner", [None, "default"], ids=["all", "own"])
@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_may_what_the_document_says_and_no_more(
    filled: Filled, route: Route, owner: str | None, scope: str
):
    allowed = SCOPES.index(scope) >= SCOPES.index(route.scope)
    allowed = allowed and (owner is None or not route.everywhere)
    before = filled.rows()
    answer = filled.ask(route, scope, owner, "default")
    if allowed:
        assert answer.status_code not in (401, 403, 500), answer.text
    else:
        assert answer.status_code == 403 and filled.rows() == before


@pytest.mark.parametrize("route", NAMED, ids=lambda route: route.id)
@pytest.mark.parametrize("scope", SCOPES)
def test_what_belongs_to_another_project_is_as_if_it_were_not_there(
    filled: Filled, route: Route, scope: str
):
    before = filled.rows()
    answer = filled.ask(route, scope, "default", "other")
    may = SCOPES.index(scope) >= SCOPES.index(route.scope) and not route.everywhere
    assert answer.status_code == (404 if may else 403), answer.text
    assert filled.rows() == before
    absent = Filled(
        filled.door,
        runs={"other": "none-1"},
        tokens={"other": "0" * 16},
        schedules={"other": "none"},
        adapters={"other": "none"},
    )
    nothing = absent.ask(route, scope, "default", "other")
    assert nothing.status_code == answer.status_code
    assert _shape(nothing.json(), absent) == _shape(answer.json(), filled)


def _shape(problem: dict[str, Any], filled: Filled) -> str:
    """A problem without the names that the asker itself said."""
    said = str(problem)
    for names in (filled.runs, filled.tokens, filled.adapters, filled.schedules):
        said = said.replace(names["other"], "X")
    return said


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if route not in NAMED], ids=lambda route: route.id
)
def test_no_list_and_no_new_thing_reaches_into_another_project(filled: Filled, route: Route):
    before = filled.rows()
    answer = filled.ask(route, "admin", "default", "other")
    assert FOREIGN not in answer.text and filled.runs["other"] not in answer.text
    if route.method == "POST":
        assert answer.status_code in (403, 404)
    assert filled.rows() == before
    if route.method == "GET":
        asked = filled.ask(route, "admin", "default", "other", headers={})
        assert FOREIGN not in asked.text


def test_a_list_asked_for_another_project_is_empty(filled: Filled):
    for path in ("/v1/runs", "/v1/adapters", "/v1/schedules"):
        answer = filled.door.ask("GET", path, "admin", "default", params={"project": "other"})
        assert answer.json() == {"items": [], "next": None}
        own = filled.door.ask("GET", path, "viewer", "other").json()["items"]
        assert [one["project"] for one in own] == ["other"]


def test_a_revoked_token_is_refused_at_once(light: Door):
    made = light.ask("POST", "/v1/tokens", json={"label": "ci", "scope": "admin"}).json()
    headers = {"Authorization": f"Bearer {made['secret']}"}
    assert light.client.get("/v1/me", headers=headers).status_code == 200
    assert light.ask("DELETE", f"/v1/tokens/{made['id']}").status_code == 204
    assert light.client.get("/v1/me", headers=headers).status_code == 401


def test_no_list_shows_a_tokens_secret(light: Door):
    made = light.ask("POST", "/v1/tokens", json={"label": "ci", "scope": "viewer"})
    assert made.headers["cache-control"] == "no-store"
    assert made.json()["secret"] not in light.ask("GET", "/v1/tokens").text


def test_a_name_that_another_project_uses_too_is_moved_by_neither(filled: Filled):
    with filled.door.service.database.write() as session:
        row = _adapter("chat", "other", filled.runs["other"])
        row.version = 2
        session.add(row)
    for what, body in (("promote", {"version": 1}), ("rollback", None)):
        path = f"/v1/adapters/chat/{what}"
        answer = filled.door.ask("POST", path, "admin", "default", json=body)
        assert answer.status_code == 409
    with filled.door.service.database.read() as session:
        assert adapters.current(session, "file:///nowhere/", "chat") is None
