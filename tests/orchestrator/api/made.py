"""A service with its door, its tokens, and a cluster of its own, for these tests."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
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
from orchestrator.api.serve import Listening, Server
from orchestrator.cluster.door import Capacity, Job, Sight
from orchestrator.cluster.errors import ClusterUnreachable
from orchestrator.registry import projects, runs, tokens
from orchestrator.registry.database import Database
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.models import SCOPES
from orchestrator.registry.values import NewRun, Run
from orchestrator.service.config import check_config
from orchestrator.service.loop import Service
from tests.orchestrator.service.made import spec_of

PROJECTS = ("default", "other")


@dataclass
class Logs:
    """A cluster that does no more than keep logs."""

    name: str = "default"
    logs: dict[str, bytes] = field(default_factory=dict)
    gone: bool = False
    asked: int = 0
    longest: int = 1 << 20
    """Bytes that it tells at once."""

    def submit(self, job: Job) -> None:
        self._answering()

    def look(self, submission: str) -> Sight:
        raise AssertionError("nobody looks at single jobs")

    def jobs(self) -> dict[str, Sight]:
        self._answering()
        return {}

    def stop(self, submission: str) -> None:
        self._answering()

    def log(self, submission: str, start: int = 0) -> bytes:
        self._answering()
        self.asked += 1
        return self.logs.get(submission, b"")[start : start + self.longest]

    def capacity(self) -> Capacity:
        self._answering()
        return Capacity(8, 0, 6, 0, 1, 1 << 34)

    def close(self) -> None:
        pass

    def _answering(self) -> None:
        if self.gone:
            raise ClusterUnreachable(self.name, "it is gone")


@dataclass
class Door:
    """An app, and what its tests hold in hand."""

    app: FastAPI
    service: Service
    cluster: Logs
    client: TestClient
    words: dict[tuple[str, str | None], str]
    """A token's words by its scope and project."""

    def ask(
        self,
        method: str,
        path: str,
        scope: str | None = "admin",
        project: str | None = None,
        **more: Any,
    ) -> Any:
        """One request, by the bearer of such a token; `scope` None: by nobody."""
        headers = dict(more.pop("headers", {}))
        if scope is not None:
            headers["Authorization"] = f"Bearer {self.words[scope, project]}"
        return self.client.request(method, path, headers=headers, **more)

    def spec(self, **changes: Any) -> dict[str, Any]:
        return {**spec_of(self.service.config.stores[0]), **changes}

    def submitted(self, project: str = "default") -> str:
        """A run's id."""
        body = {"spec": self.spec(), "project": project}
        answer = self.ask("POST", "/v1/runs", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def move(self, run_id: str, *path: Status, reason: Reason | None = None) -> Run:
        """As a reconciler would."""
        for to in path:
            with self.service.database.write() as session:
                run = runs.get(session, run_id)
                why = reason if to is path[-1] else None
                run = runs.move(session, run, to, reason=why)
        return run


def service_of(database: Database, store: str, cluster: Logs) -> Service:
    config = check_config(
        {
            "database": "sqlite:///unused.db",
            "stores": [store],
            "clusters": {cluster.name: {"address": "http://127.0.0.1:1"}},
        }
    )
    return Service(config, database, {cluster.name: cluster})


@contextmanager
def door_of(database: Database, store: str) -> Iterator[Door]:
    """The app over ASGI, with a token of each scope for each project and for all."""
    cluster = Logs()
    service = service_of(database, store, cluster)
    words = {}
    with database.write() as session:
        for project in PROJECTS:
            projects.ensure(session, project)
        for scope in SCOPES:
            for owner in (None, *PROJECTS):
                _, words[scope, owner] = tokens.issue(session, "test", scope, project=owner)
    app = make_app(service, every_s=0.02)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Door(app, service, cluster, client, words)


@contextmanager
def listening(app: FastAPI, port: int = 0) -> Iterator[str]:
    """The app behind a real server on a port of its own, or where one was before."""
    server = Server(app, Listening())
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


def added(database: Database, run_id: str, **changes: Any) -> Run:
    """A run's row, without its paper."""
    with database.write() as session:
        store = "file:///store"
        return runs.add(
            session, NewRun(**{"id": run_id, "name": "chat", "store": store, **changes})
        )


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
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
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, secret
