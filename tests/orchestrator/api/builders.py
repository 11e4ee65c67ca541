"""A service with its API, tokens and a fake cluster, for these tests."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fastapi import FastAPI
from fastapi.testclient import TestClient

from orchestrator.api.app import make_app
from orchestrator.api.server import ListenOptions, Server
from orchestrator.cluster.base import Capacity, Job, JobStatus
from orchestrator.cluster.errors import ClusterUnreachable
from orchestrator.control.config import parse_config
from orchestrator.control.supervisor import Service
from orchestrator.registry import runs, tokens
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.run_request import RunRequest
from orchestrator.registry.tables import SCOPES
from orchestrator.registry.values import Run
from tests.orchestrator.control.builders import make_spec, open_project

PROJECTS = ("default", "other")


@dataclass
class LogCluster:
    """A cluster that only has logs."""

    name: str = "default"
    logs: dict[str, bytes] = field(default_factory=dict)
    is_unreachable: bool = False
    log_reads: int = 0
    max_bytes: int = 1 << 20
    """Bytes of one read."""

    def submit(self, job: Job) -> None:
        self._check_reachable()

    def get_status(self, submission: str) -> JobStatus:
        raise AssertionError("the API does not read the status of a job")

    def list_jobs(self) -> dict[str, JobStatus]:
        self._check_reachable()
        return {}

    def stop(self, submission: str) -> None:
        self._check_reachable()

    def read_log(self, submission: str, start: int = 0) -> bytes:
        self._check_reachable()
        self.log_reads += 1
        return self.logs.get(submission, b"")[start : start + self.max_bytes]

    def get_capacity(self) -> Capacity:
        self._check_reachable()
        return Capacity(8, 0, 6, 0, 1, 1 << 34)

    def close(self) -> None:
        pass

    def _check_reachable(self) -> None:
        if self.is_unreachable:
            raise ClusterUnreachable(self.name, "it is unreachable")


@dataclass
class ApiHarness:
    """An app with its service, its cluster and tokens."""

    app: FastAPI
    service: Service
    cluster: LogCluster
    client: TestClient
    secrets: dict[tuple[str, str | None], str]
    """Secrets of tokens, by scope and project."""

    def request(
        self,
        method: str,
        path: str,
        scope: str | None = "admin",
        project: str | None = None,
        **options: Any,
    ) -> Any:
        """Send a request with a token of this scope and project, or without a token."""
        headers = dict(options.pop("headers", {}))
        if scope is not None:
            headers["Authorization"] = f"Bearer {self.secrets[scope, project]}"
        return self.client.request(method, path, headers=headers, **options)

    def make_spec(self, **changes: Any) -> dict[str, Any]:
        return {**make_spec(self.service.config.stores[0]), **changes}

    def submit(self, project: str = "default") -> str:
        """Submit a run and return its id."""
        body = {"spec": self.make_spec(), "project": project}
        response = self.request("POST", "/v1/runs", json=body)
        assert response.status_code == 201, response.text
        return str(response.json()["id"])

    def move(self, run_id: str, *path: Status, reason: Reason | None = None) -> Run:
        """Move a run as the reconciler does."""
        for to in path:
            with self.service.database.write() as session:
                run = runs.get(session, run_id)
                step_reason = reason if to is path[-1] else None
                run = runs.move(session, run, to, reason=step_reason)
        return run


def make_service(
    database: Database,
    store: str,
    cluster: LogCluster,
    http: Mapping[str, float] | None = None,
    **settings: Any,
) -> Service:
    config = parse_config(
        {
            "database": "sqlite:///unused.db",
            "stores": [store],
            "clusters": {cluster.name: {"address": "http://127.0.0.1:1"}},
            "http": {"anonymous_requests_per_s": 10_000, **(http or {})},
            **settings,
        }
    )
    return Service(config, database, {cluster.name: cluster})


@contextmanager
def open_harness(
    database: Database, store: str, *, http: Mapping[str, float] | None = None, **settings: Any
) -> Iterator[ApiHarness]:
    """Provide the app, with a token of each scope for each project and for all projects.

    `http` are limits of requests and connections, `settings` others of the configuration.
    """
    cluster = LogCluster()
    service = make_service(database, store, cluster, http, **settings)
    secrets = {}
    for project in PROJECTS:
        open_project(database, project)
    with database.write() as session:
        for scope in SCOPES:
            for owner in (None, *PROJECTS):
                _, secrets[scope, owner] = tokens.issue(session, "test", scope, project=owner)
    app = make_app(service, poll_interval_s=0.02)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield ApiHarness(app, service, cluster, client, secrets)


@contextmanager
def serve_app(app: FastAPI, port: int = 0) -> Iterator[str]:
    """Serve the app on a free port, or on the given one."""
    server = Server(app, ListenOptions())
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(512)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def add_run(database: Database, run_id: str, **changes: Any) -> Run:
    """Add the row of a run, without its request in the store."""
    request = RunRequest(**{"name": "chat", "store": "file:///store", **changes})
    with database.write() as session:
        return runs.add(session, run_id, request)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Create a self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, secret = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, secret
