"""The images and the compose file: linted, by the specification, and without a loose end."""

from __future__ import annotations

import fnmatch
import importlib.resources
import json
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from infra.compose import make_secrets
from orchestrator.service.config import load_config

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "infra/docker").glob("Dockerfile.*"))
COMPOSE = ROOT / "infra/compose/compose.yaml"
HADOLINT = str(Path(sys.executable).with_name("hadolint"))
BY_NAME = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


def lines(path: Path, word: str) -> list[str]:
    return re.findall(rf"^{word} +(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)


@BY_NAME
def test_hadolint_finds_nothing(path: Path):
    done = subprocess.run([HADOLINT, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_find_something(tmp_path: Path):
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN apt-get install -y wget\n")
    assert subprocess.run([HADOLINT, str(bad)], capture_output=True, check=False).returncode == 1


@BY_NAME
def test_every_base_is_pinned_and_pip_keeps_to_the_constraints(path: Path):
    assert all(re.search(r":\d+\.\d+\.\d+-[a-z]+", base) for base in lines(path, "FROM"))
    installs = re.findall(r"pip install .*", path.read_text(encoding="utf-8"))
    assert installs and all("-c constraints.txt" in install for install in installs)


@BY_NAME
def test_an_image_ends_as_a_user_that_is_not_root_and_holds_no_build(path: Path):
    last = path.read_text(encoding="utf-8").rpartition("\nFROM ")[2]
    (user,) = lines(path, "USER")
    assert int(user.partition(":")[0]) > 0
    assert "pip install" not in last and "COPY --from=build /opt/venv /opt/venv" in last


@BY_NAME
def test_the_extras_that_an_image_installs_are_the_packages(path: Path):
    extras = re.findall(r"'\.\[([a-z,]+)\]'", path.read_text(encoding="utf-8"))
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras and set(",".join(extras).split(",")) <= set(known)


def test_what_the_images_copy_is_sent_and_nothing_else_is():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        word
        for path in DOCKERFILES
        for line in lines(path, "COPY")
        if not line.startswith("--from")
        for word in line.split()[:-1]
    }
    assert "*" in ignored and sent == copied
    assert all((ROOT / name).exists() for name in copied)
    assert not any(fnmatch.fnmatch(".cache", name) for name in sent)


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return found


def compose_schema() -> dict[str, Any]:
    folder = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    found: dict[str, Any] = json.loads((folder / "compose-spec.json").read_text(encoding="utf-8"))
    return found


def test_the_compose_file_holds_to_the_specification():
    jsonschema.validate(compose(), compose_schema())


def test_a_key_that_compose_does_not_know_is_refused():
    wrong = compose()
    wrong["services"]["service"]["helthcheck"] = {}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, compose_schema())


SERVICES = [pytest.param(each, id=name) for name, each in compose()["services"].items()]


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_is_pinned_and_gives_up_what_it_does_not_need(service: dict[str, Any]):
    assert re.search(r":\d+(\.\d+)+", service["image"])
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("service", SERVICES)
def test_what_others_wait_for_can_be_waited_for(service: dict[str, Any]):
    services = compose()["services"]
    for name, about in service.get("depends_on", {}).items():
        other = services[name]
        if about["condition"] == "service_healthy":
            assert "healthcheck" in other
        else:
            assert about["condition"] == "service_completed_successfully"
            assert other["restart"] == "no"


@pytest.mark.parametrize("service", SERVICES)
def test_no_password_stands_in_the_compose_file(service: dict[str, Any]):
    for name, value in service.get("environment", {}).items():
        if re.search("PASSWORD|SECRET|TOKEN|KEY|CREDENTIALS", name):
            assert name.endswith(("_FILE", "_PATH")) and str(value).startswith("/run/secrets/")
            assert Path(value).name in service["secrets"]


def test_only_the_service_is_published_and_to_this_host_alone():
    published = {
        name: one["ports"] for name, one in compose()["services"].items() if "ports" in one
    }
    assert published == {"service": ["127.0.0.1:8321:8321"]}
    assert compose()["networks"]["inside"] == {"internal": True}


def test_the_services_config_names_what_the_compose_file_has(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    found = load_config(COMPOSE.with_name("service.yaml"))
    services, service = compose()["services"], compose()["services"]["service"]
    cluster = found.clusters["default"]
    assert cluster.address == "http://ray-head:8265" and "ray-head" in services
    assert cluster.token_file == services["ray-head"]["environment"]["RAY_AUTH_TOKEN_PATH"]
    assert "ray_token" in service["secrets"] and "pg_service" in service["secrets"]
    assert found.stores == (f"s3://{services['bucket']['entrypoint'][-1]}/store",)


def test_every_secret_is_made_and_handed_to_somebody(tmp_path: Path):
    assert make_secrets.main(tmp_path / "secrets") == 0
    made = {path.name for path in (tmp_path / "secrets").iterdir()}
    handed = {name for one in compose()["services"].values() for name in one.get("secrets", [])}
    files = {name: Path(one["file"]).name for name, one in compose()["secrets"].items()}
    assert made == handed == set(files) == set(files.values())


def test_secrets_are_for_their_owner_and_are_made_once(tmp_path: Path):
    folder = tmp_path / "secrets"
    make_secrets.main(folder)
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert make_secrets.main(folder) == 0
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert before["postgres_password"] in before["pg_service"]


def test_half_a_set_of_secrets_is_refused_and_not_mended(tmp_path: Path):
    folder = tmp_path / "secrets"
    make_secrets.main(folder)
    (folder / "pg_service").unlink()
    assert make_secrets.main(folder) == 2
    assert not (folder / "pg_service").exists()
