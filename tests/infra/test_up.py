"""`make up` and `make down` with the real parts: twice, after a kill, and what stays."""

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

from infra.local.home import ROOT, Home
from tests.infra.whole import Whole, plain_environment

pytestmark = [pytest.mark.ray, pytest.mark.storage, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    made = Whole(Home(tmp_path_factory.mktemp("up")))
    done = made.up()
    try:
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        made.down()


def client(whole: Whole) -> httpx.Client:
    token = whole.home.service_token.read_text().strip()
    url = whole.environment["SLORA_SERVICE"]
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30)


def cluster(whole: Whole) -> dict[str, object]:
    with client(whole) as asked:
        (found,) = asked.get("/v1/clusters").raise_for_status().json()["items"]
    known: dict[str, object] = found
    return known


def put(whole: Whole, key: str) -> None:
    s3(whole).put_object(Bucket="slora", Key=key, Body=b"kept")  # type: ignore[attr-defined]


def keys(whole: Whole) -> set[str]:
    found = s3(whole).list_objects_v2(Bucket="slora")  # type: ignore[attr-defined]
    return {one["Key"] for one in found["Contents"]}


def s3(whole: Whole) -> object:
    """As somebody finds it who reads the environment's file."""
    told = whole.environment
    lines = Path(told["AWS_SHARED_CREDENTIALS_FILE"]).read_text().split()
    return boto3.session.Session().client(
        "s3",
        endpoint_url=told["AWS_ENDPOINT_URL"],
        aws_access_key_id=lines[3],
        aws_secret_access_key=lines[-1],
        region_name=told["AWS_DEFAULT_REGION"],
    )


def test_the_service_answers_by_the_printed_token_and_sees_its_ray(whole: Whole):
    found = cluster(whole)
    assert (found["name"], found["up"]) == ("default", True)


def test_ray_has_its_token_and_refuses_who_has_none(whole: Whole):
    jobs = f"http://127.0.0.1:{whole.state.ports['dashboard']}/api/jobs/"
    token = whole.home.ray_token.read_text().strip()
    assert httpx.get(jobs).status_code == 401
    assert httpx.get(jobs, headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_a_second_up_starts_nothing_and_tells_the_same(whole: Whole):
    before = whole.state
    done = whole.up()
    assert done.returncode == 0, done.stderr
    assert whole.state == before
    assert (
        done.stdout.count("runs already") == 3 and whole.environment["SLORA_SERVICE"] in done.stdout
    )


def test_no_secret_is_printed_or_in_a_command_line(whole: Whole):
    home = whole.home
    told = whole.up().stdout + whole.home.environment.read_text()
    for pid in whole.processes():
        told += " ".join(psutil.Process(pid).cmdline())
    secrets = [home.ray_token, home.service_token, home.credentials]
    assert not any(file.read_text().split()[-1] in told for file in secrets)


def test_a_ray_that_was_killed_is_started_again_and_the_service_finds_it(whole: Whole):
    before = whole.state
    head = psutil.Process(before.parts["ray"].pid)
    head.kill()
    psutil.wait_procs([head], timeout=20)
    done = whole.up()
    assert done.returncode == 0, done.stderr
    after = whole.state
    assert after.parts["ray"] != before.parts["ray"]
    assert after.parts["storage"] == before.parts["storage"]
    assert cluster(whole)["up"] is True


def test_down_leaves_no_process_and_all_data_and_up_finds_them(whole: Whole):
    put(whole, "store/mine")
    token = whole.home.service_token.read_text()
    running, scratch = whole.processes(), whole.state.scratch
    assert len(running) > 3 and scratch is not None
    done = whole.down()
    assert done.stdout.strip() == "ended: service, ray, storage"
    assert not {pid for pid in running if psutil.pid_exists(pid)}
    assert not Path(scratch).exists()
    assert whole.up().returncode == 0
    assert "store/mine" in keys(whole)
    assert whole.home.service_token.read_text() == token
    assert cluster(whole)["up"] is True


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_up_that_is_broken_off_leaves_nothing_or_what_down_ends(tmp_path: Path, number: int):
    whole = Whole(Home(tmp_path / "up"))
    with subprocess.Popen(
        whole.command("up"), env=plain_environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as begun:
        assert begun.stdout is not None
        while "Ray        starts" not in begun.stdout.readline():
            assert begun.poll() is None
        os.kill(begun.pid, number)
        begun.stdout.read()
    if number == signal.SIGKILL:
        assert whole.processes()
        assert "storage" in whole.down().stdout
    assert whole.processes() == set()
    assert whole.state.parts == {} and whole.state.scratch is None
