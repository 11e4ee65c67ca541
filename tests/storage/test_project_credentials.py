"""Each project reaches its own part of a real S3 store, and nothing of the others or the root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from infra.local.paths import format_profile
from infra.local.project_identities import KEYS, make_identity
from jobs.errors import InputError, StoreError, StoreRefused
from jobs.store.s3.s3_store import S3Store
from orchestrator.control.looking.look_protocol import LookLimits, LookRequest, LookResult
from orchestrator.control.looking.look_runner import LookRunner
from orchestrator.control.projects.credentials import ProjectCredentials
from orchestrator.control.projects.project_config import ProjectConfig
from tests.jobs.store.builders import catch
from tests.storage.weed import BUCKET, Weed

STORE = f"s3://{BUCKET}/store"
ROLE = "arn:aws:iam::000000000000:role/jobs"
LAB, OTHER = make_identity("lab", STORE), make_identity("other", STORE)
OPENER = """
import sys
from jobs.store.open import open_store
from jobs.errors import StoreError
store = open_store(sys.argv[2])
try:
    if sys.argv[1] == "write":
        store.put("runs/r1/spec.yaml", b"name: chat", create_only=True)
        print(store.get("runs/r1/spec.yaml").decode(), *store.list("runs/"), store.head("absent"))
    elif sys.argv[1] == "list":
        print(*store.list(""))
    else:
        print(store.get(sys.argv[1]))
except StoreError as error:
    sys.exit(str(error))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """A server with an identity for each of two projects, and a role without limits."""
    server = Weed(tmp_path_factory.mktemp("projects"), identities=[LAB, OTHER], roles=[ROLE])
    server.start()
    yield server
    server.kill()


@pytest.fixture
def root(server: Weed, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """The store as its service sees it, with an object of the other project and one of its own."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    store = S3Store(BUCKET, "store")
    for key in ("projects/other/rows", "runs/r9/spec.yaml", "projects/lab/rows"):
        store.put(key, b"rows of " + key.encode())
    for key in list(store.list("projects/lab/runs/")):
        store.delete(key)
    return store


Maker = Callable[[str], ProjectConfig]


@pytest.fixture(params=["an identity", "a session of a role"])
def make_config(request: pytest.FixtureRequest, tmp_path: Path) -> Maker:
    """Make the configuration of a project in both ways of having credentials."""

    def make(project: str) -> ProjectConfig:
        if request.param == "a session of a role":
            return ProjectConfig(role_arn=ROLE)
        pair = (LAB if project == "lab" else OTHER)["credentials"][0]
        file = tmp_path / project
        file.touch(0o600)
        file.write_text(format_profile(*(pair[key] for key in KEYS)))
        return ProjectConfig(credentials_file=str(file))

    return make


def make_credentials(make_config: Maker, **options: object) -> ProjectCredentials:
    configs = {project: make_config(project) for project in ("lab", "other")}
    return ProjectCredentials(configs, [STORE], **options)  # type: ignore[arg-type]


def run_job(
    environment: Mapping[str, str], *arguments: str, node: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a process with a job's environment on a node that has its own."""
    return subprocess.run(
        [sys.executable, "-c", OPENER, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd(), **node, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_job_works_in_its_project_and_nowhere_else(
    root: S3Store, make_config: Maker, server: Weed, tmp_path: Path
):
    environment = make_credentials(make_config).make_job_environment("lab", STORE)
    # The node's own credentials could do anything.
    node = {**server.environment, "AWS_PROFILE": "nobody", "HOME": str(tmp_path)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_job(environment, *arguments, node=node)

    done = run("write", f"{STORE}/projects/lab")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["name:", "chat", "runs/r1/spec.yaml", "None"]
    denials = [
        run("rows", f"{STORE}/projects/other"),
        run("runs/r9/spec.yaml", STORE),
        run("list", f"{STORE}/projects/other"),
        run("list", f"{STORE}/runs"),
        run("list", STORE),
        run("list", f"s3://{BUCKET}"),
        run("write", f"{STORE}/projects/other"),
        run("write", f"{STORE}/projects/lab-2"),
        run("write", STORE),
    ]
    assert [(job.returncode, job.stdout) for job in denials] == [(1, "")] * len(denials)
    assert all("access denied" in job.stderr for job in denials), denials
    assert root.get("projects/other/rows") == b"rows of projects/other/rows"
    assert "projects/other/runs/r1/spec.yaml" not in set(root.list(""))


def test_a_job_may_read_but_not_write_the_places_of_its_project(
    root: S3Store, monkeypatch: pytest.MonkeyPatch
):
    bucket = S3Store(BUCKET)
    bucket.put("places/lab/a.jsonl", b"{}")
    bucket.put("places/labour/a.jsonl", b"{}")
    credentials = ProjectCredentials(
        {"lab": ProjectConfig(role_arn=ROLE)},
        [STORE],
        list_places=lambda project: [f"s3://{BUCKET}/places/lab", "/data"],
    )
    for name, value in credentials.make_job_environment("lab", STORE).items():
        monkeypatch.setenv(name, value)
    assert list(bucket.list("places/lab/")) == ["places/lab/a.jsonl"]
    assert bucket.get("places/lab/a.jsonl") == b"{}"
    for act in (
        lambda: bucket.put("places/lab/b", b""),
        lambda: bucket.get("places/labour/a.jsonl"),
        lambda: list(bucket.list("places/")),
    ):
        assert isinstance(catch(StoreError, act), StoreRefused)


def test_a_child_that_looks_has_the_project_and_nothing_of_the_service(
    root: S3Store, make_config: Maker, server: Weed, tmp_path: Path
):
    service = {
        **os.environ,
        "SLORA_DATABASE": "postgresql://slora:canary@db/slora",
        "SLORA_SIGNING_KEY": "/etc/slora/canary.pem",
        "RAY_AUTH_TOKEN_PATH": "/etc/slora/canary-ray",
        "HOME": "/canary",
    }
    credentials = make_credentials(make_config, environment=service)
    environment = credentials.make_look_environment("lab", tmp_path)
    assert "canary" not in json.dumps({**environment, "SLORA_CACHE": ""})
    assert server.secret not in environment.values() and environment["HOME"] == str(tmp_path)
    assert run_job(environment, "rows", f"{STORE}/projects/lab", node={}).returncode == 0
    denied = run_job(environment, "rows", f"{STORE}/projects/other", node={})
    assert denied.returncode == 1 and "access denied" in denied.stderr


def test_a_look_reads_the_store_of_its_own_project_alone(
    root: S3Store, make_config: Maker, tmp_path: Path
):
    environment = make_credentials(make_config).make_look_environment
    runner = LookRunner(make_environment=environment, limits=LookLimits(wall_s=300))

    def look(project: str) -> LookResult:
        location = f"{STORE}/projects/{project}/rows"
        request = LookRequest(question="fingerprint_data", location=location)
        return runner.submit("lab", request).result(300)

    try:
        assert look("lab").fingerprint is not None
        assert look("other").fingerprint is None and "access denied" in look("other").store_error
    finally:
        runner.close()


def test_the_operators_own_project_is_looked_at_with_the_services_credentials(
    root: S3Store, make_config: Maker, tmp_path: Path
):
    environment = make_credentials(make_config).make_look_environment("default", tmp_path)
    assert run_job(environment, "runs/r9/spec.yaml", STORE, node={}).returncode == 0


def test_a_look_uses_a_session_for_half_of_its_life(root: S3Store, tmp_path: Path):
    now = [0.0]
    credentials = ProjectCredentials(
        {"lab": ProjectConfig(role_arn=ROLE)}, [STORE], clock=lambda: now[0]
    )

    def look() -> str:
        return credentials.make_look_environment("lab", tmp_path)["AWS_SESSION_TOKEN"]

    first = look()
    assert look() == first
    now[0] = 1e12
    assert look() != first


def test_a_project_without_credentials_has_none_of_the_nodes(
    root: S3Store, server: Weed, tmp_path: Path
):
    credentials = ProjectCredentials({}, [STORE, f"file://{tmp_path}"])
    environment = credentials.make_job_environment("lab", f"file://{tmp_path}")
    node = {**server.environment, "HOME": str(tmp_path)}
    denied = run_job(environment, "rows", f"{STORE}/projects/lab", node=node)
    assert denied.returncode == 1 and "no usable credentials" in denied.stderr
    with pytest.raises(InputError, match=r"store: the project lab has no credentials for s3://"):
        credentials.make_job_environment("lab", STORE)


def test_a_role_that_cannot_be_assumed_is_named_with_the_fix(root: S3Store):
    unknown = "arn:aws:iam::000000000000:role/unknown"
    credentials = ProjectCredentials({"lab": ProjectConfig(role_arn=unknown)}, [STORE])
    with pytest.raises(InputError, match=r"role_arn: .*role/unknown can't be assumed \(AccessDen"):
        credentials.make_job_environment("lab", STORE)
