"""The environment of a job holds its project's credentials and nothing of the service's process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra.local.paths import format_profile
from jobs.errors import InputError, StoreUnreachable
from jobs.store.settings import read_store_settings
from orchestrator.control.projects.credentials import ProjectCredentials
from orchestrator.control.projects.private_file import AccessKeys
from orchestrator.control.projects.project_config import ProjectConfig
from orchestrator.control.projects.project_sessions import ProjectSessions
from tests.jobs.store.builders import catch

S3 = "s3://bucket/store"
SERVICE = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_ACCESS_KEY_ID": "canary-id",
    "AWS_SECRET_ACCESS_KEY": "canary-key",
    "AWS_PROFILE": "canary-profile",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/canary",
    "SLORA_DATABASE": "postgresql://slora:canary@db/slora",
    "SLORA_SIGNING_KEY": "/canary.pem",
    "SLORA_TOKEN": "slora_canary",
    "RAY_AUTH_TOKEN": "canary-ray",
    "PGPASSWORD": "canary-pg",
    "HF_TOKEN": "canary-hub",
    "HOME": "/canary-home",
}


@pytest.fixture
def config(tmp_path: Path) -> ProjectConfig:
    keys, secret = tmp_path / "keys", tmp_path / "hub"
    for file, text in ((keys, format_profile("lab-id", "lab-key")), (secret, "lab-hub\n")):
        file.touch(0o600)
        file.write_text(text)
    return ProjectConfig(credentials_file=str(keys), secrets={"HF_TOKEN": str(secret)})


def make_credentials(**projects: ProjectConfig) -> ProjectCredentials:
    return ProjectCredentials(projects, [S3], environment=SERVICE)


def test_a_job_has_its_projects_credentials_and_nothing_of_the_service(config: ProjectConfig):
    environment = make_credentials(lab=config).make_job_environment("lab", S3)
    assert "canary" not in str(environment)
    assert {name: value for name, value in environment.items() if value.startswith("lab")} == {
        "AWS_ACCESS_KEY_ID": "lab-id",
        "AWS_SECRET_ACCESS_KEY": "lab-key",
        "HF_TOKEN": "lab-hub",
        "SLORA_PROJECT": "lab",
    }
    assert environment["AWS_ENDPOINT_URL"] == SERVICE["AWS_ENDPOINT_URL"]
    assert environment["AWS_DEFAULT_REGION"] == SERVICE["AWS_DEFAULT_REGION"]


def test_a_job_of_the_operator_runs_as_its_node_unless_it_is_configured(config: ProjectConfig):
    assert make_credentials().make_job_environment("default", S3) == {}
    with_secrets = make_credentials(default=ProjectConfig(secrets=config.secrets))
    assert with_secrets.make_job_environment("default", S3) == {"HF_TOKEN": "lab-hub"}
    configured = make_credentials(default=config).make_job_environment("default", S3)
    assert configured["AWS_ACCESS_KEY_ID"] == "lab-id"


def test_a_project_without_credentials_has_no_s3_store(config: ProjectConfig):
    credentials = make_credentials(lab=config, poor=ProjectConfig(secrets=config.secrets))
    faults = {
        (project, store): credentials.find_fault(project, store) is not None
        for project in ("lab", "poor", "unknown", "default")
        for store in (S3, "file:///store")
    }
    assert [key for key, is_refused in faults.items() if is_refused] == [
        ("poor", S3),
        ("unknown", S3),
    ]
    with pytest.raises(InputError, match=r"projects\.poor\.role_arn"):
        credentials.make_job_environment("poor", S3)
    environment = credentials.make_job_environment("poor", "file:///store")
    assert environment["AWS_ACCESS_KEY_ID"] == "" and environment["HF_TOKEN"] == "lab-hub"


@pytest.mark.parametrize("field", ["credentials_file", "secrets"])
def test_a_file_that_is_gone_delays_a_job_and_shows_no_content(config: ProjectConfig, field: str):
    file = config.credentials_file if field == "credentials_file" else config.secrets["HF_TOKEN"]
    Path(str(file)).unlink()
    error = catch(
        StoreUnreachable, lambda: make_credentials(lab=config).make_job_environment("lab", S3)
    )
    assert str(file) in str(error) and "lab-key" not in str(error)


def test_the_operators_look_has_keys_and_no_file_that_another_user_could_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(format_profile("own-id", "own-key"))
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    environment = ProjectCredentials({}, [S3]).make_look_environment("default", Path("/empty"))
    assert environment["AWS_ACCESS_KEY_ID"] == "own-id"
    assert environment["AWS_SECRET_ACCESS_KEY"] == "own-key"
    assert environment["HF_HOME"] == f"{tmp_path}/.cache/huggingface"
    named = make_credentials().make_look_environment("default", Path("/empty"))
    assert named["AWS_ACCESS_KEY_ID"] == "canary-id" and "AWS_PROFILE" not in named


@pytest.mark.parametrize("project", ["lab", "poor"])
def test_a_look_of_a_project_has_nothing_of_the_operator(config: ProjectConfig, project: str):
    credentials = make_credentials(lab=config)
    environment = credentials.make_look_environment(project, Path("/empty"))
    assert "canary" not in str({**environment, "SLORA_CACHE": ""})
    assert environment["AWS_EC2_METADATA_DISABLED"] == "true" and environment["HOME"] == "/empty"
    keys = [name for name in environment if name.startswith("AWS_") and "KEY" in name]
    assert keys == (["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] if project == "lab" else [])
    assert {"AWS_PROFILE", "AWS_CONFIG_FILE", "HF_HOME"} & environment.keys() == set()


def test_projects_share_no_folder_of_a_node():
    node = {"HOME": "/home/ray", "SLORA_CACHE": "/cache", "SLORA_OUTBOX": "/state/outbox"}
    plain, lab, other = (
        read_store_settings({**node, **project})
        for project in ({}, {"SLORA_PROJECT": "lab"}, {"SLORA_PROJECT": "other"})
    )
    assert (plain.cache, plain.outbox) == (Path("/cache"), Path("/state/outbox"))
    assert (lab.cache, lab.outbox) == (
        Path("/cache/projects/lab"),
        Path("/state/projects/lab/outbox"),
    )
    folders = [lab.cache, lab.outbox.parent, other.cache, other.outbox.parent]
    assert len(set(folders)) == 4
    for name in ("../other", "a/b", ".."):
        with pytest.raises(InputError, match="not the name of a project"):
            read_store_settings({**node, "SLORA_PROJECT": name})


def test_no_text_of_an_object_shows_a_key(config: ProjectConfig):
    credentials = make_credentials(lab=config)
    assert "lab-key" not in f"{credentials.get_session('lab')!r} {config!r} {credentials!r}"


class RoleServer:
    """A server of roles that plays a script: the number of a session, or that it is away."""

    def __init__(self) -> None:
        self.now, self.count, self.is_away = 0.0, 0, False
        self.places: tuple[str, ...] = ()

    def make_sessions(self) -> ProjectSessions:
        role = ProjectConfig(role_arn="arn:aws:iam::123456789012:role/lab", session_s=3600)
        return ProjectSessions(
            {"lab": role},
            [S3],
            list_places=lambda project: self.places,
            clock=lambda: self.now,
            assume=self.assume,
        )

    def assume(self, role: str, **session: object) -> AccessKeys:
        self.count += 1
        if self.is_away:
            raise StoreUnreachable("the role can't be assumed now")
        return AccessKeys(f"session-{self.count}", "secret", "token", self.now + 3600)


def test_jobs_share_a_session_in_the_first_half_of_its_life_and_with_its_places():
    server = RoleServer()
    sessions = server.make_sessions()

    def read_id() -> str:
        return sessions.share("lab").key_id

    assert (read_id(), read_id()) == ("session-1", "session-1")
    server.places = ("s3://data/new/",)
    assert (read_id(), read_id()) == ("session-2", "session-2")
    server.now = 1801
    assert (read_id(), read_id()) == ("session-3", "session-3")
    assert sessions.make("lab").key_id == "session-4"


def test_a_server_of_roles_that_is_away_is_asked_once_in_a_while():
    server = RoleServer()
    server.is_away, sessions = True, server.make_sessions()
    for _ in range(100):
        assert catch(StoreUnreachable, lambda: sessions.share("lab")) is not None
        assert catch(StoreUnreachable, lambda: sessions.make("lab")) is not None
    assert server.count == 1
    server.is_away, server.now = False, 31
    assert sessions.share("lab").key_id == "session-2"
