"""A running job renews its project's credentials, and nobody else gets them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import boto3
import botocore.session
import pytest

from infra.local.paths import format_profile
from jobs.store.s3.handed_credentials import use_handed_credentials
from orchestrator.control.projects.credentials import ProjectCredentials
from orchestrator.control.projects.project_config import ProjectConfig
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.tables import SCOPES
from orchestrator.registry.values import Run
from tests.orchestrator.api.builders import ApiHarness, open_harness, serve_app

CANARY = "canary-4f1e"
URI, TOKEN = "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN"


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return write_private_text(tmp_path / "other-keys", format_profile("key-1", CANARY))


@pytest.fixture
def api(migrated_file: Path, tmp_path: Path, keys_file: Path) -> Iterator[ApiHarness]:
    """Provide a service whose project `other` has keys."""
    file = tmp_path / "light.db"
    shutil.copy(migrated_file, file)
    key = write_private_text(tmp_path / "job-key", "k" * 64)
    settings = {
        "projects": {"other": {"credentials_file": str(keys_file)}},
        "jobs": {"url": "http://127.0.0.1:9", "key_file": str(key)},
    }
    database = Database(f"sqlite:///{file}")
    with open_harness(database, f"file://{tmp_path / 'store'}", **settings) as harness:
        yield harness
    database.close()


def write_private_text(file: Path, text: str) -> Path:
    file.touch(0o600)
    file.write_text(text)
    return file


def start_run(api: ApiHarness, project: str = "other") -> Run:
    return api.move(api.submit(project), Status.SUBMITTED)


def make_environment(api: ApiHarness, run: Run) -> dict[str, str]:
    return api.service.credentials.make_job_environment(run.project, run.store, run)


def request(api: ApiHarness, run_id: str, authorization: str | bytes | None) -> int:
    headers = {} if authorization is None else {"Authorization": authorization}
    response = api.client.get(f"/v1/runs/{run_id}/credentials", headers=headers)
    assert (CANARY in response.text) == (response.status_code == 200)
    return int(response.status_code)


def test_a_jobs_variables_hold_a_token_and_no_key(api: ApiHarness):
    environment = make_environment(api, start_run(api))
    assert CANARY not in str(environment)
    assert environment["AWS_ACCESS_KEY_ID"] == environment["AWS_SECRET_ACCESS_KEY"] == ""


def test_only_the_job_of_an_active_runs_newest_attempt_gets_credentials(api: ApiHarness):
    run, other_run = start_run(api), start_run(api)
    token = make_environment(api, run)[TOKEN]
    assert request(api, run.id, token) == 200
    api.move(run.id, Status.RUNNING)
    assert request(api, run.id, token) == 200
    strangers = [
        (run.id, None),
        (run.id, make_environment(api, other_run)[TOKEN]),
        (run.id, token[:-1] + ("0" if token[-1] != "0" else "1")),
        (run.id, token.replace("slora-run.1.", "slora-run.2.")),
        (run.id, token.replace("Bearer ", "")),
        (run.id, b"Bearer \xe9"),
        ("absent-1", token),
        *((run.id, f"Bearer {secret}") for secret in api.secrets.values()),
    ]
    assert len(api.secrets) == 3 * len(SCOPES)
    assert {request(api, *stranger) for stranger in strangers} == {401}
    api.move(run.id, Status.LOST, reason=Reason.JOB_ABSENT)
    assert request(api, run.id, token) == 401
    api.move(run.id, Status.PLANNED, Status.SUBMITTED)
    assert request(api, run.id, token) == 401


def test_a_token_of_a_job_opens_no_other_route(api: ApiHarness):
    run = start_run(api)
    headers = {"Authorization": make_environment(api, run)[TOKEN]}
    assert api.client.get(f"/v1/runs/{run.id}", headers=headers).status_code == 401


def test_without_a_configuration_for_jobs_there_are_no_tokens(api: ApiHarness):
    run = start_run(api)
    token = make_environment(api, run)[TOKEN]
    without = api.service.config.model_copy(update={"jobs": None})
    api.service.config = without
    assert request(api, run.id, token) == 401


def test_boto3_asks_the_service_and_renews_its_keys(
    api: ApiHarness, keys_file: Path, monkeypatch: pytest.MonkeyPatch
):
    run = start_run(api)
    # So short that boto3 renews the keys at every request.
    config = ProjectConfig.model_construct(credentials_file=str(keys_file), session_s=60)
    with serve_app(api.app) as url:
        jobs = api.service.config.jobs
        assert jobs is not None
        api.service.credentials = ProjectCredentials(
            {"other": config}, api.service.config.stores, jobs=jobs.model_copy(update={"url": url})
        )
        environment = make_environment(api, run)
        assert environment[URI] == f"{url}/v1/runs/{run.id}/credentials"
        # The node's own keys and profile are not used.
        node = {"AWS_ACCESS_KEY_ID": "node", "AWS_SECRET_ACCESS_KEY": "node", "AWS_PROFILE": "x"}
        for name, value in {**node, **environment}.items():
            monkeypatch.setenv(name, value)
        credentials = make_session({**node, **environment}).get_credentials()
        assert read_pair(credentials) == ("key-1", CANARY)
        keys_file.write_text(format_profile("key-2", "secret-2"))
        assert read_pair(credentials) == ("key-2", "secret-2")


def make_session(environment: Mapping[str, str]) -> boto3.session.Session:
    core_session = botocore.session.get_session()
    use_handed_credentials(core_session, environment)
    return boto3.session.Session(botocore_session=core_session)


def read_pair(credentials: object) -> tuple[str, str]:
    frozen = credentials.get_frozen_credentials()  # type: ignore[attr-defined]
    return frozen.access_key, frozen.secret_key
