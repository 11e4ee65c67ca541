"""What strangers send: it ends up in no shell, no path, no log line, no SQL, and never in a 500."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from orchestrator.api.passages import LARGEST_BODY
from orchestrator.registry.database import Database
from tests.orchestrator.api.made import Door, listening

WORDS = [
    "'; DROP TABLE runs; --",
    "$(touch pwned)",
    "`touch pwned`",
    "a; touch pwned",
    "../../etc/passwd",
    "a/../../b",
    "a\r\nSet-Cookie: x=1",
    "a\nroot: everything is well",
    "a\x00b",
    "a\x1b[2Jb",
    "{{7*7}}",
    "%s%s%n",
    "\N{RIGHT-TO-LEFT OVERRIDE}txt.exe",
    "x" * 5000,
]


@pytest.mark.parametrize("word", WORDS, ids=ascii)
def test_a_hostile_name_is_refused_as_a_name(light: Door, word: str, tmp_path: Path):
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/runs", {"spec": light.spec(name=word)}),
        ("/v1/runs", {"spec": light.spec(), "project": word}),
        ("/v1/runs", {"spec": light.spec(), "cluster": word}),
        ("/v1/runs", {"spec": light.spec(store=word)}),
        ("/v1/runs", {"spec": light.spec(store=f"{light.service.config.stores[0]}/{word}")}),
        ("/v1/projects", {"name": word}),
        ("/v1/tokens", {"label": word, "scope": "viewer"}),
        (
            "/v1/schedules",
            {"name": word, "cron": "0 3 * * *", "kind": "finetune", "spec": light.spec()},
        ),
        (
            "/v1/schedules",
            {"name": "n", "cron": word, "kind": "finetune", "spec": light.spec()},
        ),
    ]
    for path, body in bodies:
        answer = light.ask("POST", path, json=body)
        assert answer.status_code == 422, (path, body)
    for name in ("project", "name", "cursor"):
        assert light.ask("GET", "/v1/runs", params={name: word}).status_code == 422
    assert light.ask("GET", "/v1/runs").json()["items"] == []
    assert not list(tmp_path.rglob("*pwned*"))


@pytest.mark.parametrize("word", WORDS, ids=ascii)
def test_what_a_spec_says_freely_stays_text(light: Door, word: str):
    spec = light.spec(model={"path": f"/models/{word}"})
    answer = light.ask("POST", "/v1/runs", json={"spec": spec})
    if answer.status_code == 201:
        text = light.ask("GET", f"/v1/runs/{answer.json()['id']}/spec").text
        assert yaml.safe_load(text)["model"]["path"] == f"/models/{word}"
    else:
        assert answer.status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        b'{"spec": {}, "spec": {}}',
        b'{"spec": {"name": NaN}}',
        b'{"spec": {"name": "\\ud800"}}',
        b'{"spec": {"\\udfff": 1}}',
        b"[" * 100_000,
        b'{"spec":' * 50_000,
        b"\xff\xfe",
        b'{"spec": {"a": 1e9999}}',
        b'{"priority": ' + b"9" * 10_000 + b"}",
        b"null",
        b"",
    ],
    ids=lambda body: str(body[:20]),
)
def test_a_body_that_is_no_sound_json_is_a_fault(light: Door, body: bytes):
    headers = {"Content-Type": "application/json"}
    answer = light.ask("POST", "/v1/runs", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("chunked", [False, True], ids=["by length", "in chunks"])
def test_a_body_that_is_too_large_is_refused(light: Door, chunked: bool):
    body = json.dumps({"spec": {"name": "x" * LARGEST_BODY}}).encode()
    content: Any = iter([body[:1000], body[1000:]]) if chunked else body
    headers = {"Content-Type": "application/json"}
    answer = light.ask("POST", "/v1/runs", content=content, headers=headers)
    assert answer.status_code == 413 and answer.json()["status"] == 413


def test_no_log_line_begins_with_what_a_stranger_sent(
    light: Door, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    forged = "forged line"
    with listening(light.app) as address:
        headers = {"Authorization": f"Bearer {light.words['admin', None]}"}
        for path in (f"/v1/runs/%0A{forged}", f"/v1/runs?name=%0D%0A{forged}", f"/%0a{forged}"):
            httpx.get(f"{address}{path}", headers={**headers, "User-Agent": forged})
        spec = light.spec(name=f"a\n{forged}")
        httpx.post(f"{address}/v1/runs", headers=headers, json={"spec": spec})
    ours = [one for one in caplog.records if one.name.startswith(("orchestrator", "uvicorn"))]
    assert not [one for one in ours if f"\n{forged}" in one.getMessage()]


def test_metrics_name_routes_and_never_what_was_asked_for(light: Door):
    light.ask("GET", "/v1/runs/some-secret-run")
    light.ask("GET", "/nowhere/some-secret-path")
    light.ask("BREW", "/v1/runs")
    text = light.ask("GET", "/metrics").text
    assert 'slora_http_requests_total{code="404",method="GET",route="/v1/runs/{run}"} 1.0' in text
    assert "some-secret" not in text and "BREW" not in text


def test_a_database_that_is_away_is_told_without_its_place(light: Door):
    light.service.database.close()
    away = Database("postgresql://nobody:hunter2@127.0.0.1:1/none")
    light.service.database._engines = away._engines
    answer = light.ask("GET", "/readyz", None)
    assert answer.status_code == 503 and answer.headers["retry-after"]
    assert "127.0.0.1" not in answer.text and "hunter2" not in answer.text
    assert light.ask("GET", "/v1/me").status_code == 503
