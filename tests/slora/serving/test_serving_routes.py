"""The plug-in's routes: who may ask, what they answer, and how a refusal looks."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from slora.serving.name_plan import LoadedAdapter
from slora.serving.refusals import ServingRefused
from slora.serving.routes import add_routes

KEY = {"Authorization": "Bearer key"}


class RecordedServer:
    """Answers as an adapter server does, and writes down what it was asked."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    async def describe(self) -> dict[str, Any]:
        return {"version": 1}

    async def load(self, name: str, source: Any, base_digest: str | None) -> LoadedAdapter:
        self.calls.append((name, str(source), base_digest))
        return LoadedAdapter("lora", "d")

    async def point(self, name: str, version: str | None) -> None:
        raise ServingRefused(409, f"{name} can't answer with {version}")

    async def unload(self, name: str) -> None:
        self.calls.append(name)


def test_routes_need_the_key_and_pass_on_what_is_asked():
    app, server = FastAPI(), RecordedServer()
    find: Any = lambda: server  # noqa: E731
    add_routes(app, find, lambda headers: headers.get("authorization") == KEY["Authorization"])
    client = TestClient(app)
    for method, path in (("GET", "state"), ("POST", "load"), ("POST", "names"), ("POST", "unload")):
        assert client.request(method, f"/slora/{path}", json={}).status_code == 401
    assert client.get("/slora/state", headers=KEY).json() == {"version": 1}
    body = {"name": "a@v1", "path": "/x"}
    assert client.post("/slora/load", json=body, headers=KEY).json() == {
        "form": "lora", "digest": "d",
    }  # fmt: skip
    assert client.post("/slora/unload", json={"name": "a@v1"}, headers=KEY).status_code == 200
    assert server.calls == [("a@v1", "/x", None), "a@v1"]
    refusal = client.post("/slora/names", json={"name": "a", "to": "a@v1"}, headers=KEY)
    assert refusal.status_code == 409
    assert refusal.json()["error"]["message"] == "a can't answer with a@v1"
    unknown = client.post("/slora/load", json={**body, "pickle": "x"}, headers=KEY)
    assert unknown.status_code == 422
