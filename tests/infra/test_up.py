"""`make up` and `make down` with the real components: repeated, after a kill, interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import httpx
import psutil
import pytest
from botocore.exceptions import ClientError

from infra.local.paths import ROOT, StackPaths
from tests.infra.local_stack import RunningStack, clean_environment

pytestmark = [pytest.mark.ray, pytest.mark.storage, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    running = RunningStack(StackPaths(tmp_path_factory.mktemp("up")))
    result = running.run_up()
    try:
        assert result.returncode == 0, result.stderr
        yield running
    finally:
        running.run_down()


def make_client(stack: RunningStack) -> httpx.Client:
    token = stack.paths.service_token.read_text().strip()
    url = stack.environment["SLORA_SERVICE"]
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30)


def get_cluster(stack: RunningStack) -> dict[str, object]:
    with make_client(stack) as connected:
        (response,) = connected.get("/v1/clusters").raise_for_status().json()["items"]
    described: dict[str, object] = response
    return described


def put_object(stack: RunningStack, key: str, credentials: Path | None = None) -> None:
    client = make_s3_client(stack, credentials)
    client.put_object(Bucket="slora", Key=key, Body=b"kept")  # type: ignore[attr-defined]


def list_keys(stack: RunningStack) -> set[str]:
    listing = make_s3_client(stack).list_objects_v2(Bucket="slora")  # type: ignore[attr-defined]
    return {entry["Key"] for entry in listing["Contents"]}


def make_s3_client(stack: RunningStack, credentials: Path | None = None) -> object:
    """Connect with the settings of the environment file, or with other credentials."""
    environment = stack.environment
    file = credentials or Path(environment["AWS_SHARED_CREDENTIALS_FILE"])
    lines = file.read_text().split()
    return boto3.session.Session().client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=lines[3],
        aws_secret_access_key=lines[-1],
        region_name=environment["AWS_DEFAULT_REGION"],
    )


def test_the_service_accepts_the_printed_token_and_reaches_ray(stack: RunningStack):
    described = get_cluster(stack)
    assert (described["name"], described["up"]) == ("default", True)


def test_ray_requires_its_token(stack: RunningStack):
    jobs = f"http://127.0.0.1:{stack.state.ports['dashboard']}/api/jobs/"
    token = stack.paths.ray_token.read_text().strip()
    assert httpx.get(jobs).status_code == 401
    assert httpx.get(jobs, headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_a_second_up_starts_nothing(stack: RunningStack):
    before = stack.state
    result = stack.run_up()
    assert result.returncode == 0, result.stderr
    assert stack.state == before
    assert (
        result.stdout.count("is already running") == 3
        and stack.environment["SLORA_SERVICE"] in result.stdout
    )


def test_no_secret_is_printed_or_in_a_command_line(stack: RunningStack):
    paths = stack.paths
    output = stack.run_up().stdout + stack.paths.environment.read_text()
    for pid in stack.list_processes():
        output += " ".join(psutil.Process(pid).cmdline())
    secrets = [paths.ray_token, paths.service_token, paths.credentials]
    assert not any(file.read_text().split()[-1] in output for file in secrets)


def test_a_killed_ray_is_restarted_and_reached_again(stack: RunningStack):
    before = stack.state
    head = psutil.Process(before.components["ray"].pid)
    head.kill()
    psutil.wait_procs([head], timeout=20)
    result = stack.run_up()
    assert result.returncode == 0, result.stderr
    after = stack.state
    assert after.components["ray"] != before.components["ray"]
    assert after.components["storage"] == before.components["storage"]
    assert get_cluster(stack)["up"] is True


def test_a_project_gets_credentials_for_its_part_of_the_store(stack: RunningStack):
    before = stack.state
    result = stack.run_up("--project", "lab", "--project", "vision")
    assert result.returncode == 0, result.stderr
    lab, vision = (stack.paths.project_credentials(name) for name in ("lab", "vision"))
    assert str(lab) in result.stdout and lab.read_text().split()[-1] not in result.stdout
    # Only what reads the projects was started again, at the same addresses.
    after = stack.state
    assert after.components["ray"] == before.components["ray"] and after.ports == before.ports
    put_object(stack, "store/projects/lab/rows", lab)
    for key, file in (("store/projects/lab/rows", vision), ("store/rows", lab)):
        with pytest.raises(ClientError, match="AccessDenied"):
            put_object(stack, key, file)
    keys = [lab.read_text(), vision.read_text()]
    assert stack.run_up("--project", "lab").returncode == 0
    assert stack.state == after and [lab.read_text(), vision.read_text()] == keys
    assert get_cluster(stack)["up"] is True


def test_down_leaves_no_process_and_keeps_all_data(stack: RunningStack):
    put_object(stack, "store/mine")
    token = stack.paths.service_token.read_text()
    running, scratch = stack.list_processes(), stack.state.scratch
    assert len(running) > 3 and scratch is not None
    result = stack.run_down()
    assert result.stdout.strip() == "stopped service, ray, storage"
    assert not {pid for pid in running if psutil.pid_exists(pid)}
    assert not Path(scratch).exists()
    assert stack.run_up().returncode == 0
    assert "store/mine" in list_keys(stack)
    assert stack.paths.service_token.read_text() == token
    assert get_cluster(stack)["up"] is True


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_up_leaves_nothing_that_down_does_not_stop(tmp_path: Path, number: int):
    running = RunningStack(StackPaths(tmp_path / "up"))
    with subprocess.Popen(
        running.build_command("up"),
        env=clean_environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while "Ray        starting" not in process.stdout.readline():
            assert process.poll() is None
        os.kill(process.pid, number)
        process.stdout.read()
    if number == signal.SIGKILL:
        assert running.list_processes()
        assert "storage" in running.run_down().stdout
    assert running.list_processes() == set()
    assert running.state.components == {} and running.state.scratch is None
