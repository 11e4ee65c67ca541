"""What `make up` starts is known again, ended whole, and nothing else is; secrets stay secret."""

from __future__ import annotations

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

from infra.local.down import down
from infra.local.home import Busy, Home, private, s3_environment
from infra.local.parts import config_text
from infra.local.processes import alive, end, family, free_port, start, started
from infra.local.state import State, read_state, write_state
from infra.local.up import exports
from infra.local.up import main as up_main
from orchestrator.service.config import load_config

SLEEP = "import time; print('here', flush=True); time.sleep(600)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).wait()"


class Nursery:
    """Starts processes as `make up` does, and ends what a failing test would leave."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[subprocess.Popen[bytes]] = []
        self._known: set[psutil.Process] = set()

    def start(self, code: str, mark: str) -> subprocess.Popen[bytes]:
        log = self._folder / f"{len(self._made)}.log"
        command = [sys.executable, "-c", code]
        made = start(command, environment=os.environ, mark=mark, log=log, cwd=self._folder)
        self._made.append(made)
        while b"here" not in log.read_bytes():
            assert made.poll() is None
        self._known |= {psutil.Process(made.pid), *psutil.Process(made.pid).children(True)}
        return made

    def close(self) -> None:
        end({process for process in self._known if process.is_running()}, patience_s=0)
        for made in self._made:
            made.wait()


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    made = Nursery(tmp_path)
    yield made
    made.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "up")
    made.make()
    return made


def test_a_process_is_known_by_its_number_and_its_start(nursery: Nursery):
    known = started(nursery.start(SLEEP, "a").pid)
    assert known is not None and alive(known)
    assert not alive(replace(known, since="another boot 12"))


def test_a_process_that_ended_is_not_alive_even_before_its_parent_has_seen_it(nursery: Nursery):
    made = nursery.start(SLEEP, "a")
    known = started(made.pid)
    psutil.Process(made.pid).kill()
    while psutil.Process(made.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert not alive(known)


def test_what_a_killed_leader_leaves_behind_is_found_and_ended(nursery: Nursery):
    made = nursery.start(PARENT, "mine-1")
    leader = started(made.pid)
    (child,) = psutil.Process(made.pid).children()
    made.kill()
    made.wait()
    assert leader is not None and family("mine-1", [leader]) == {child}
    end(family("mine-1", [leader]), patience_s=5)
    assert not child.is_running()


def test_other_peoples_processes_are_not_ours(nursery: Nursery):
    foreign = started(nursery.start(SLEEP, "theirs-1").pid)
    mine = started(nursery.start(SLEEP, "mine-1").pid)
    assert foreign is not None and mine is not None
    # As after a reboot: the number of a part of ours is somebody else's now.
    stale = replace(foreign, since="an earlier boot 77")
    assert {process.pid for process in family("mine-1", [mine, stale])} == {mine.pid}


def test_who_does_not_hear_sigterm_is_killed(nursery: Nursery):
    made = nursery.start(DEAF, "mine-1")
    end(family("mine-1", []), patience_s=0.1)
    assert made.poll() is not None


def test_down_ends_what_a_crashed_up_had_no_time_to_write_down(nursery: Nursery, home: Home):
    state = State(mark="0123")
    write_state(home.state, state)
    made = nursery.start(SLEEP, "0123-ray")
    assert down(home) == ["ray"]
    assert made.poll() is not None
    assert down(home) == []


def test_down_where_nothing_was_up_is_harmless(home: Home):
    assert down(home) == []


def test_the_state_is_read_as_it_was_written(home: Home):
    known = started(os.getpid())
    state = State(ports={"s3": 4}, scratch="/tmp/x").with_part("ray", known)
    write_state(home.state, state)
    assert read_state(home.state) == state


@pytest.mark.parametrize("text", ["", "{", "[]", '{"mark": "a"}', '{"parts": {"ray": 3}}'])
def test_a_state_that_can_not_be_read_is_none(home: Home, text: str):
    home.state.write_text(text)
    assert read_state(home.state) is None


def test_secrets_are_for_their_owner_alone_and_stay_as_they_are(home: Home):
    files = (home.ray_token, home.credentials, home.identities)
    before = [file.read_text() for file in files]
    home.make()
    assert [file.read_text() for file in files] == before
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700


def test_a_private_file_replaces_one_that_all_could_read(tmp_path: Path):
    (tmp_path / "a").write_text("old")
    private(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_two_at_once_are_refused(home: Home):
    with home.alone(), pytest.raises(Busy), home.alone():
        pass


def test_a_shell_reads_what_it_exports_whatever_is_in_it():
    said = exports({"SLORA_TOKEN_FILE": "/home/o'neill/$(id) up"})
    script = f'{said}printf %s "$SLORA_TOKEN_FILE"'
    found = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "/home/o'neill/$(id) up"


def test_no_secret_is_in_a_command_or_in_the_environment(home: Home):
    said = str(s3_environment(home, "http://127.0.0.1:1")) + config_text(home, _ports())
    secret = home.credentials.read_text().split()[-1]
    assert secret not in said and home.ray_token.read_text() not in said


def test_the_service_understands_the_config_that_it_is_given(home: Home):
    home.config.write_text(config_text(home, _ports()))
    found = load_config(home.config)
    assert found.stores[0] == "s3://slora/store"
    assert found.clusters["default"].shares_files
    assert yaml.safe_load(home.config.read_text())["database"].endswith("/registry.db")


def test_a_port_that_somebody_has_is_left_to_them():
    first = free_port(0)
    assert free_port(first) == first
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", first))
        listener.listen()
        assert free_port(first) != first


def test_an_up_that_fails_names_the_log_and_leaves_nothing(
    home: Home, capsys: pytest.CaptureFixture[str]
):
    private(home.identities, "this is no JSON")
    assert up_main(["--state", str(home.folder)]) == 3
    said = capsys.readouterr()
    assert "storage" in said.out and str(home.log("storage")) in said.err
    state = read_state(home.state)
    assert state is not None and state.parts == {} and state.scratch is None
    assert family(f"{state.mark}-storage", []) == set()


def _ports() -> dict[str, int]:
    return {"s3": 1, "dashboard": 2, "service": 3}
