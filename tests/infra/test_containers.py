"""The images and the compose file: linted, valid, and consistent with each other."""

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
from orchestrator.control.config import load_config

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "infra/docker").glob("Dockerfile.*"))
COMPOSE = ROOT / "infra/compose/compose.yaml"
HADOLINT = str(Path(sys.executable).with_name("hadolint"))
BY_NAME = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


def find_lines(path: Path, instruction: str) -> list[str]:
    return re.findall(rf"^{instruction} +(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)


@BY_NAME
def test_dockerfiles_pass_hadolint(path: Path):
    result = subprocess.run([HADOLINT, str(path)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_hadolint_rejects_a_bad_dockerfile(tmp_path: Path):
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN apt-get install -y wget\n")
    assert subprocess.run([HADOLINT, str(bad)], capture_output=True, check=False).returncode == 1


@BY_NAME
def test_bases_are_pinned_and_pip_uses_the_constraints(path: Path):
    assert all(re.search(r":\d+\.\d+\.\d+-[a-z]+", base) for base in find_lines(path, "FROM"))
    installs = re.findall(r"pip install .*", path.read_text(encoding="utf-8"))
    assert installs and all("-c constraints.txt" in install for install in installs)


@BY_NAME
def test_an_image_runs_as_a_user_and_contains_no_build(path: Path):
    last = path.read_text(encoding="utf-8").rpartition("\nFROM ")[2]
    (user,) = find_lines(path, "USER")
    assert int(user.partition(":")[0]) > 0
    assert "pip install" not in last and "COPY --from=build /opt/venv /opt/venv" in last


@BY_NAME
def test_an_image_installs_known_extras(path: Path):
    extras = re.findall(r"'\.\[([a-z,]+)\]'", path.read_text(encoding="utf-8"))
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras and set(",".join(extras).split(",")) <= set(known)


def test_the_build_context_is_exactly_what_images_copy():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        source
        for path in DOCKERFILES
        for line in find_lines(path, "COPY")
        if not line.startswith("--from")
        for source in line.split()[:-1]
    }
    assert "*" in ignored and sent == copied
    assert all((ROOT / name).exists() for name in copied)
    assert not any(fnmatch.fnmatch(".cache", name) for name in sent)


def load_compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return document


def load_compose_schema() -> dict[str, Any]:
    folder = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    document: dict[str, Any] = json.loads(
        (folder / "compose-spec.json").read_text(encoding="utf-8")
    )
    return document


def test_the_compose_file_matches_the_specification():
    jsonschema.validate(load_compose(), load_compose_schema())


def test_an_unknown_compose_key_is_rejected():
    wrong = load_compose()
    wrong["services"]["service"]["helthcheck"] = {}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, load_compose_schema())


SERVICES = [pytest.param(each, id=name) for name, each in load_compose()["services"].items()]


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_is_pinned_and_drops_capabilities(service: dict[str, Any]):
    assert re.search(r":\d+(\.\d+)+", service["image"])
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("service", SERVICES)
def test_every_dependency_can_be_waited_for(service: dict[str, Any]):
    services = load_compose()["services"]
    for name, dependency in service.get("depends_on", {}).items():
        other = services[name]
        if dependency["condition"] == "service_healthy":
            assert "healthcheck" in other
        else:
            assert dependency["condition"] == "service_completed_successfully"
            assert other["restart"] == "no"


@pytest.mark.parametrize("service", SERVICES)
def test_the_compose_file_contains_no_password(service: dict[str, Any]):
    for name, value in service.get("environment", {}).items():
        if re.search("PASSWORD|SECRET|TOKEN|KEY|CREDENTIALS", name):
            assert name.endswith(("_FILE", "_PATH")) and str(value).startswith("/run/secrets/")
            assert Path(value).name in service["secrets"]


def test_only_the_service_is_published_and_only_locally():
    published = {
        name: service["ports"]
        for name, service in load_compose()["services"].items()
        if "ports" in service
    }
    assert published == {"service": ["127.0.0.1:8321:8321"]}
    assert load_compose()["networks"]["inside"] == {"internal": True}


def test_the_service_config_matches_the_compose_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    config = load_config(COMPOSE.with_name("service.yaml"))
    services, service = load_compose()["services"], load_compose()["services"]["service"]
    cluster = config.clusters["default"]
    assert cluster.address == "http://ray-head:8265" and "ray-head" in services
    assert cluster.token_file == services["ray-head"]["environment"]["RAY_AUTH_TOKEN_PATH"]
    assert "ray_token" in service["secrets"] and "pg_service" in service["secrets"]
    assert config.stores == (f"s3://{services['bucket']['entrypoint'][-1]}/store",)


def test_every_secret_is_created_and_used(tmp_path: Path):
    assert make_secrets.main(tmp_path / "secrets") == 0
    created = {path.name for path in (tmp_path / "secrets").iterdir()}
    used = {
        name for entry in load_compose()["services"].values() for name in entry.get("secrets", [])
    }
    files = {name: Path(entry["file"]).name for name, entry in load_compose()["secrets"].items()}
    assert created == used == set(files) == set(files.values())


def test_secrets_are_private_and_created_once(tmp_path: Path):
    folder = tmp_path / "secrets"
    make_secrets.main(folder)
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert make_secrets.main(folder) == 0
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert before["postgres_password"] in before["pg_service"]


def test_an_incomplete_set_of_secrets_is_rejected(tmp_path: Path):
    folder = tmp_path / "secrets"
    make_secrets.main(folder)
    (folder / "pg_service").unlink()
    assert make_secrets.main(folder) == 2
    assert not (folder / "pg_service").exists()
