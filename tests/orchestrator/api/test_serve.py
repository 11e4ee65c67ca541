"""`slora serve` as a process: its start, its files, its shutdown."""

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
from orchestrator.api.server import ListenOptions, check_listen_options, locate_token_file
from orchestrator.registry.database import Database
from tests.orchestrator.api.builders import make_certificate

TIMEOUT_S = 60


class ServiceProcess:
    """A service that has printed its address."""

    def __init__(self, process: subprocess.Popen[str], lines: list[str]) -> None:
        self.process, self.lines = process, lines
        match = re.search(r"Serving at (\S+)", "".join(lines))
        assert match is not None, lines
        self.url = match[1]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)

    @property
    def output(self) -> str:
        assert self.process.stderr is not None
        return "".join(self.lines) + self.process.stderr.read()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Create a configuration with one cluster, at a closed port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        unused_port = listener.getsockname()[1]
    file = tmp_path / "service.yaml"
    settings = {
        "database": f"sqlite:///{tmp_path / 'state' / 'registry.db'}",
        "stores": [f"file://{tmp_path / 'store'}"],
        "clusters": {"default": {"address": f"http://127.0.0.1:{unused_port}"}},
    }
    file.write_text(yaml.safe_dump(settings))
    return file


@contextmanager
def run_service(config: Path, *arguments: str) -> Iterator[ServiceProcess]:
    command = [sys.executable, "-c", "from orchestrator.cli.main import main; main()", "serve"]
    command += ["--config", str(config), "--port", "0", *arguments]
    environment = {**os.environ, "COLUMNS": "300"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "Serving at" in line:
                break
        yield ServiceProcess(process, lines)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(TIMEOUT_S)
        assert process.stderr is not None
        process.stderr.close()


def read_secret(config: Path) -> str:
    return locate_token_file(yaml.safe_load(config.read_text())["database"]).read_text().strip()


def make_headers(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.mark.slow
def test_the_first_start_creates_tables_and_a_token_file(config: Path):
    with run_service(config) as service:
        assert httpx.get(f"{service.url}/readyz").status_code == 200
        secret = read_secret(config)
        me = httpx.get(f"{service.url}/v1/me", headers=make_headers(secret)).json()
        assert (me["scope"], me["project"]) == ("admin", None)
        assert service.stop() == 0
        assert secret not in service.output
        file = locate_token_file(yaml.safe_load(config.read_text())["database"])
        assert file.stat().st_mode & 0o777 == 0o600
    with run_service(config) as service:
        assert read_secret(config) == secret
        assert httpx.get(f"{service.url}/v1/me", headers=make_headers(secret)).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_closes_streams_and_releases_leases(config: Path, how: signal.Signals):
    with run_service(config) as service:
        headers = make_headers(read_secret(config))
        spec = {
            "name": "chat",
            "model": {"path": "/models/tiny"},
            "data": {"train": "/data/t.jsonl", "eval_fraction": 0.5},
            "train": {"steps": 1},
        }
        run = httpx.post(f"{service.url}/v1/runs", headers=headers, json={"spec": spec}).json()[
            "id"
        ]
        streaming, finished = threading.Event(), threading.Event()

        def follow() -> None:
            address = f"{service.url}/v1/runs/{run}/events"
            with httpx.stream("GET", address, headers=headers, timeout=60) as response:
                for _ in response.iter_text():
                    streaming.set()
            finished.set()

        follower = threading.Thread(target=follow)
        follower.start()
        assert streaming.wait(20)
        assert service.stop(how) == 0
        follower.join(20)
        assert finished.is_set()
    database = Database(yaml.safe_load(config.read_text())["database"])
    with database.read() as session:
        held = session.execute(text("SELECT name FROM leases WHERE expires_at > 0")).all()
        assert session.scalar(text("SELECT count(*) FROM runs")) == 1
    database.close()
    assert held == []


@pytest.mark.slow
def test_a_service_serves_tls_with_the_configured_files(config: Path, tmp_path: Path):
    chain, key = make_certificate(tmp_path)
    with run_service(config, "--tls-cert", str(chain), "--tls-key", str(key)) as service:
        assert service.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(chain))
        assert httpx.get(f"{service.url}/healthz", verify=trusted).status_code == 200
        assert service.stop() == 0


def test_a_port_in_use_is_an_input_error(config: Path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        command = [sys.executable, "-c", "from orchestrator.cli.main import main; main()", "serve"]
        command += ["--config", str(config), "--port", str(listener.getsockname()[1])]
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert result.returncode == 2 and "--port" in result.stderr


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        pytest.param(ListenOptions("0.0.0.0"), "--host", id="all addresses in the clear"),
        pytest.param(ListenOptions("example.org"), "--host", id="a name in the clear"),
        pytest.param(ListenOptions(certificate=Path("c.pem")), "--tls-cert", id="no key"),
        pytest.param(
            ListenOptions("0.0.0.0", certificate=Path("/none.pem"), key=Path("/none.pem")),
            "--tls-cert",
            id="files that are not there",
        ),
    ],
)
def test_a_service_that_would_expose_tokens_does_not_start(where: ListenOptions, fault: str):
    with pytest.raises(InputError) as refused:
        check_listen_options(where)
    assert refused.value.faults[0].key == fault


@pytest.mark.parametrize(
    "where",
    [
        ListenOptions("127.0.0.2"),
        ListenOptions("::1"),
        ListenOptions("localhost"),
        ListenOptions("::", insecure=True),
    ],
    ids=lambda where: where.host,
)
def test_loopback_and_insecure_http_may_be_unencrypted(where: ListenOptions):
    check_listen_options(where)


def test_the_first_token_with_postgresql_is_written_to_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert locate_token_file("postgresql://me@host/slora") == tmp_path / ".cache" / "service-token"
