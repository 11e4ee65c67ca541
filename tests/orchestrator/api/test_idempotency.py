"""Concurrent submissions with one key create one run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.orchestrator.api.builders import ApiHarness, serve_app

CLIENTS = 20


def test_twenty_clients_with_the_same_key_get_the_same_run(
    database_api: ApiHarness, tmp_path: Path
):
    body = {"spec": database_api.make_spec()}
    with serve_app(database_api.app) as address, ThreadPoolExecutor(CLIENTS) as pool:
        headers = {
            "Authorization": f"Bearer {database_api.secrets['submitter', None]}",
            "Idempotency-Key": "the-same",
        }

        def submit(_: int) -> tuple[int, str]:
            response = httpx.post(f"{address}/v1/runs", json=body, headers=headers, timeout=60)
            assert response.is_success, response.text
            return response.status_code, response.json()["id"]

        results = list(pool.map(submit, range(CLIENTS)))
    assert sorted(code for code, _ in results) == [200] * (CLIENTS - 1) + [201]
    assert len({run for _, run in results}) == 1
    # No request file of the repetitions is left, of which a rebuild would create runs.
    assert len(list((tmp_path / "store" / "runs").glob("*/request.json"))) == 1


def test_a_key_belongs_to_its_project(api: ApiHarness):
    body = {"spec": api.make_spec()}
    headers = {"Idempotency-Key": "the-same"}
    for project in ("default", "other"):
        response = api.request("POST", "/v1/runs", "submitter", project, json=body, headers=headers)
        assert response.status_code == 201


def test_a_rejected_submission_does_not_use_up_its_key(api: ApiHarness):
    headers = {"Idempotency-Key": "k"}
    invalid = {"spec": api.make_spec(train={})}
    assert api.request("POST", "/v1/runs", json=invalid, headers=headers).status_code == 422
    valid = {"spec": api.make_spec()}
    assert api.request("POST", "/v1/runs", json=valid, headers=headers).status_code == 201
