"""`make up` and `make down`: process identity, cleanup, secrets and configuration."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml

from infra.local.components import format_config
from infra.local.down import stop_stack
from infra.local.paths import StackBusy, StackPaths, build_s3_environment, write_private
from infra.local.processes import (
    find_free_port,
    find_processes,
    is_alive,
    read_identity,
    start_process,
    stop_processes,
)
from infra.local.project_identities import add_projects, find_missing_projects
from infra.local.state import StackState, read_state, write_state
from infra.local.up import format_exports
from infra.local.up import main as up_main
from orchestrator.control.config import load_config

SLEEP = "import time; print('here', flush=True); time.sleep(600)"
IGNORES_SIGTERM = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).wait()"


class ProcessStarter:
    """Starts processes as `make up` does, and stops them if a test fails."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._known: set[psutil.Process] = set()

    def start(self, code: str, mark: str) -> subprocess.Popen[bytes]:
        log = self._folder / f"{len(self._processes)}.log"
        command = [sys.executable, "-c", code]
        process = start_process(
            command, environment=os.environ, mark=mark, log=log, cwd=self._folder
        )
        self._processes.append(process)
        while b"here" not in log.read_bytes():
            assert process.poll() is None
        self._known |= {psutil.Process(process.pid), *psutil.Process(process.pid).children(True)}
        return process

    def close(self) -> None:
        stop_processes({process for process in self._known if process.is_running()}, timeout_s=0)
        for started in self._processes:
            started.wait()


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[ProcessStarter]:
    starter = ProcessStarter(tmp_path)
    yield starter
    starter.close()


@pytest.fixture
def paths(tmp_path: Path) -> StackPaths:
    paths = StackPaths(tmp_path / "up")
    paths.create()
    return paths


def test_a_process_is_identified_by_pid_and_start(starter: ProcessStarter):
    identity = read_identity(starter.start(SLEEP, "a").pid)
    assert identity is not None and is_alive(identity)
    assert not is_alive(replace(identity, since="another boot 12"))


def test_a_zombie_is_not_alive(starter: ProcessStarter):
    process = starter.start(SLEEP, "a")
    identity = read_identity(process.pid)
    psutil.Process(process.pid).kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert not is_alive(identity)


def test_orphans_of_a_killed_leader_are_stopped(starter: ProcessStarter):
    process = starter.start(PARENT, "mine-1")
    leader = read_identity(process.pid)
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert leader is not None and find_processes("mine-1", [leader]) == {child}
    stop_processes(find_processes("mine-1", [leader]), timeout_s=5)
    assert not child.is_running()


def test_foreign_processes_are_not_ours(starter: ProcessStarter):
    foreign = read_identity(starter.start(SLEEP, "theirs-1").pid)
    mine = read_identity(starter.start(SLEEP, "mine-1").pid)
    assert foreign is not None and mine is not None
    # As after a reboot: the pid of our component now belongs to another process.
    stale = replace(foreign, since="an earlier boot 77")
    assert {process.pid for process in find_processes("mine-1", [mine, stale])} == {mine.pid}


def test_a_process_that_ignores_sigterm_is_killed(starter: ProcessStarter):
    process = starter.start(IGNORES_SIGTERM, "mine-1")
    stop_processes(find_processes("mine-1", []), timeout_s=0.1)
    assert process.poll() is not None


def test_down_stops_what_a_crashed_up_did_not_record(starter: ProcessStarter, paths: StackPaths):
    state = StackState(mark="0123")
    write_state(paths.state, state)
    process = starter.start(SLEEP, "0123-ray")
    assert stop_stack(paths) == ["ray"]
    assert process.poll() is not None
    assert stop_stack(paths) == []


def test_down_without_an_up_is_harmless(paths: StackPaths):
    assert stop_stack(paths) == []


def test_the_state_is_read_as_it_was_written(paths: StackPaths):
    identity = read_identity(os.getpid())
    state = StackState(ports={"s3": 4}, scratch="/tmp/x").with_component("ray", identity)
    write_state(paths.state, state)
    assert read_state(paths.state) == state


@pytest.mark.parametrize("text", ["", "{", "[]", '{"mark": "a"}', '{"components": {"ray": 3}}'])
def test_an_unreadable_state_is_none(paths: StackPaths, text: str):
    paths.state.write_text(text)
    assert read_state(paths.state) is None


def test_secrets_are_private_and_stay_the_same(paths: StackPaths):
    files = (paths.ray_token, paths.credentials, paths.identities)
    before = [file.read_text() for file in files]
    paths.create()
    assert [file.read_text() for file in files] == before
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(paths.folder.stat().st_mode) == 0o700


def test_a_private_file_replaces_a_public_file(tmp_path: Path):
    (tmp_path / "a").write_text("old")
    write_private(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_a_second_lock_is_refused(paths: StackPaths):
    with paths.lock(), pytest.raises(StackBusy), paths.lock():
        pass


def test_exports_are_quoted_for_a_shell():
    exported = format_exports({"SLORA_TOKEN_FILE": "/home/o'neill/$(id) up"})
    script = f'{exported}printf %s "$SLORA_TOKEN_FILE"'
    result = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "/home/o'neill/$(id) up"


def test_no_secret_is_in_the_config_or_the_environment(paths: StackPaths):
    text = str(build_s3_environment(paths, "http://127.0.0.1:1")) + format_config(
        paths, make_ports()
    )
    secret = paths.credentials.read_text().split()[-1]
    assert secret not in text and paths.ray_token.read_text() not in text


def test_the_service_accepts_the_generated_config(paths: StackPaths):
    paths.config.write_text(format_config(paths, make_ports()))
    config = load_config(paths.config)
    assert config.stores[0] == "s3://slora/store"
    assert config.clusters["default"].shared_filesystem
    assert yaml.safe_load(paths.config.read_text())["database"].endswith("/registry.db")


def test_the_service_knows_the_credentials_of_projects_and_shows_no_key(paths: StackPaths):
    assert find_missing_projects(paths, ["lab", "vision", "lab"]) == ["lab", "vision"]
    add_projects(paths, ["lab", "vision"])
    paths.config.write_text(format_config(paths, make_ports()))
    config = load_config(paths.config)
    assert set(config.projects) == {"lab", "vision"} and config.jobs is not None
    lab = paths.project_credentials("lab")
    assert config.projects["lab"].credentials_file == str(lab)
    assert stat.S_IMODE(lab.stat().st_mode) == 0o600
    identities = json.loads(paths.identities.read_text())["identities"]
    assert [identity["name"] for identity in identities] == [
        "slora", "project-lab", "project-vision",
    ]  # fmt: skip
    assert set(identities[1]["actions"]) == {
        f"{action}:slora/store/projects/lab/*" for action in ("Read", "Write", "List")
    }
    secrets = [identity["credentials"][0]["secretKey"] for identity in identities]
    assert len(set(secrets)) == 3 and not any(key in paths.config.read_text() for key in secrets)


def test_a_project_keeps_its_key_and_a_lost_file_makes_a_new_one(paths: StackPaths):
    add_projects(paths, ["lab", "vision"])
    before = paths.project_credentials("lab").read_text()
    assert find_missing_projects(paths, ["lab", "vision"]) == []
    paths.project_credentials("vision").unlink()
    missing = find_missing_projects(paths, ["lab", "vision"])
    assert missing == ["vision"]
    add_projects(paths, missing)
    assert paths.project_credentials("lab").read_text() == before
    assert len(json.loads(paths.identities.read_text())["identities"]) == 3


@pytest.mark.parametrize("name", ["default", "", "../lab", "a/b", "lab*"])
def test_a_name_that_no_project_has_is_refused(paths: StackPaths, name: str, capsys):
    with pytest.raises(SystemExit):
        up_main(["--state", str(paths.folder), "--project", name])
    assert "can't have credentials of its own" in capsys.readouterr().err


def test_without_projects_the_configuration_names_none(paths: StackPaths):
    assert {"projects", "jobs"} & set(yaml.safe_load(format_config(paths, make_ports()))) == set()


def test_a_server_of_the_stack_is_the_endpoint_local_of_all_projects(paths: StackPaths):
    assert "serving" not in yaml.safe_load(format_config(paths, make_ports()))
    add_projects(paths, ["lab"])
    paths.config.write_text(format_config(paths, {**make_ports(), "serving": 4}))
    endpoint = load_config(paths.config).serving["local"]
    assert (endpoint.url, endpoint.projects) == ("http://127.0.0.1:4", ("default", "lab"))
    assert paths.serving_key.read_text() not in paths.config.read_text()


def test_a_port_in_use_is_not_chosen():
    first = find_free_port(0)
    assert find_free_port(first) == first
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", first))
        listener.listen()
        assert find_free_port(first) != first


def test_a_failed_up_names_the_log_and_leaves_nothing(
    paths: StackPaths, capsys: pytest.CaptureFixture[str]
):
    write_private(paths.identities, "this is no JSON")
    assert up_main(["--state", str(paths.folder)]) == 3
    captured = capsys.readouterr()
    assert "storage" in captured.out and str(paths.log_file("storage")) in captured.err
    state = read_state(paths.state)
    assert state is not None and state.components == {} and state.scratch is None
    assert find_processes(f"{state.mark}-storage", []) == set()


def make_ports() -> dict[str, int]:
    return {"s3": 1, "dashboard": 2, "service": 3}
