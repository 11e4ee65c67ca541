"""The same submission, sent again and again at once: one run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.orchestrator.api.made import Door, listening

CLIENTS = 20


def test_twenty_clients_with_one_key_get_one_run(door: Door, tmp_path: Path):
    body = {"spec": door.spec()}
    with listening(door.app) as address, ThreadPoolExecutor(CLIENTS) as pool:
        headers = {
            "Authorization": f"Bearer {door.words['submitter', None]}",
            "Idempotency-Key": "the-same",
        }

        def submit(_: int) -> tuple[int, str]:
            answer = httpx.post(f"{address}/v1/runs", json=body, headers=headers, timeout=60)
            assert answer.is_success, answer.text
            return answer.status_code, answer.json()["id"]

        answers = list(pool.map(submit, range(CLIENTS)))
    assert sorted(code for code, _ in answers) == [200] * (CLIENTS - 1) + [201]
    assert len({run for _, run in answers}) == 1
    # No paper is left of those that came second: a rebuild would make runs of them.
    assert len(list((tmp_path / "store" / "runs").glob("*/request.json"))) == 1


def test_a_key_is_its_projects_own(light: Door):
    body = {"spec": light.spec()}
    headers = {"Idempotency-Key": "the-same"}
    for project in ("default", "other"):
        answer = light.ask("POST", "/v1/runs", "submitter", project, json=body, headers=headers)
        assert answer.status_code == 201


def test_a_submission_that_was_refused_uses_up_no_key(light: Door):
    headers = {"Idempotency-Key": "k"}
    wrong = {"spec": light.spec(train={})}
    assert light.ask("POST", "/v1/runs", json=wrong, headers=headers).status_code == 422
    right = {"spec": light.spec()}
    assert light.ask("POST", "/v1/runs", json=right, headers=headers).status_code == 201
