"""`slora serve` as a process of its own: how it starts, what it leaves, how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml
from sqlalchemy import text

from jobs.errors import InputError
from orchestrator.api.serve import Listening, check_listening, token_file
from orchestrator.registry.database import Database
from tests.orchestrator.api.made import certificate

PATIENCE_S = 60


class Served:
    """A service that has said where it listens."""

    def __init__(self, process: subprocess.Popen[str], lines: list[str]) -> None:
        self.process, self.lines = process, lines
        found = re.search(r"serves at (\S+)", "".join(lines))
        assert found is not None, lines
        self.url = found[1]

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(PATIENCE_S)

    @property
    def said(self) -> str:
        assert self.process.stderr is not None
        return "".join(self.lines) + self.process.stderr.read()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """One cluster, at a port where nobody is."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = taken.getsockname()[1]
    file = tmp_path / "service.yaml"
    told = {
        "database": f"sqlite:///{tmp_path / 'state' / 'registry.db'}",
        "stores": [f"file://{tmp_path / 'store'}"],
        "clusters": {"default": {"address": f"http://127.0.0.1:{nobody}"}},
    }
    file.write_text(yaml.safe_dump(told))
    return file


@contextmanager
def served(config: Path, *words: str) -> Iterator[Served]:
    command = [sys.executable, "-c", "from orchestrator.main import main; main()", "serve"]
    command += ["--config", str(config), "--port", "0", *words]
    environment = {**os.environ, "COLUMNS": "300"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "serves at" in line:
                break
        yield Served(process, lines)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE_S)
        assert process.stderr is not None
        process.stderr.close()


def words_of(config: Path) -> str:
    return token_file(yaml.safe_load(config.read_text())["database"]).read_text().strip()


def bearer(words: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {words}"}


def test_a_first_start_makes_tables_and_a_token_that_only_its_file_tells(config: Path):
    with served(config) as service:
        assert httpx.get(f"{service.url}/readyz").status_code == 200
        words = words_of(config)
        me = httpx.get(f"{service.url}/v1/me", headers=bearer(words)).json()
        assert (me["scope"], me["project"]) == ("admin", None)
        assert service.end() == 0
        assert words not in service.said
        file = token_file(yaml.safe_load(config.read_text())["database"])
        assert file.stat().st_mode & 0o777 == 0o600
    with served(config) as service:
        assert words_of(config) == words
        assert httpx.get(f"{service.url}/v1/me", headers=bearer(words)).status_code == 200


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_streams_and_leases_and_the_process_well(config: Path, how: signal.Signals):
    with served(config) as service:
        headers = bearer(words_of(config))
        spec = {
            "name": "chat",
            "model": {"path": "/models/tiny"},
            "data": {"train": "/data/t.jsonl", "eval_fraction": 0.5},
            "train": {"steps": 1},
        }
        run = httpx.post(f"{service.url}/v1/runs", headers=headers, json={"spec": spec}).json()[
            "id"
        ]
        begun, ended = threading.Event(), threading.Event()

        def follow() -> None:
            address = f"{service.url}/v1/runs/{run}/events"
            with httpx.stream("GET", address, headers=headers, timeout=60) as answer:
                for _ in answer.iter_text():
                    begun.set()
            ended.set()

        follower = threading.Thread(target=follow)
        follower.start()
        assert begun.wait(20)
        assert service.end(how) == 0
        follower.join(20)
        assert ended.is_set()
    database = Database(yaml.safe_load(config.read_text())["database"])
    with database.read() as session:
        held = session.execute(text("SELECT name FROM leases WHERE expires_at > 0")).all()
        assert session.scalar(text("SELECT count(*) FROM runs")) == 1
    database.close()
    assert held == []


def test_a_service_speaks_tls_with_the_files_that_it_is_given(config: Path, tmp_path: Path):
    chain, key = certificate(tmp_path)
    with served(config, "--tls-cert", str(chain), "--tls-key", str(key)) as service:
        assert service.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(chain))
        assert httpx.get(f"{service.url}/healthz", verify=trusted).status_code == 200
        assert service.end() == 0


def test_a_port_in_use_is_a_fault_of_the_input(config: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [sys.executable, "-c", "from orchestrator.main import main; main()", "serve"]
        command += ["--config", str(config), "--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2 and "--port" in done.stderr


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        pytest.param(Listening("0.0.0.0"), "--host", id="all addresses in the clear"),
        pytest.param(Listening("example.org"), "--host", id="a name in the clear"),
        pytest.param(Listening(certificate=Path("c.pem")), "--tls-cert", id="no key"),
        pytest.param(
            Listening("0.0.0.0", certificate=Path("/none.pem"), key=Path("/none.pem")),
            "--tls-cert",
            id="files that are not there",
        ),
    ],
)
def test_a_service_that_would_give_its_tokens_away_does_not_start(where: Listening, fault: str):
    with pytest.raises(InputError) as refused:
        check_listening(where)
    assert refused.value.faults[0].key == fault


@pytest.mark.parametrize(
    "where",
    [
        Listening("127.0.0.2"),
        Listening("::1"),
        Listening("localhost"),
        Listening("::", insecure=True),
    ],
    ids=lambda where: where.host,
)
def test_loopback_and_what_is_asked_for_by_name_may_be_in_the_clear(where: Listening):
    check_listening(where)


def test_the_first_token_of_a_postgresql_lies_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert token_file("postgresql://me@host/slora") == tmp_path / ".cache" / "service-token"
