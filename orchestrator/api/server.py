"""The service as a process: its database, its first token, its HTTP server, its shutdown."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from jobs.errors import Fault, InputError
from orchestrator.api.app import make_app
from orchestrator.api.audit_values import record_token
from orchestrator.api.connections import make_protocol_class
from orchestrator.api.stream_hub import StreamHub
from orchestrator.cluster.base import Cluster
from orchestrator.control.config import ServiceConfig, parse_config
from orchestrator.control.signing.service_trust import apply_policy
from orchestrator.control.supervisor import Service
from orchestrator.registry import projects, tokens
from orchestrator.registry.database import Database, parse_database_url
from orchestrator.registry.migrate import open_registry, upgrade
from orchestrator.registry.tenancy.audit_log import make_local_actor
from orchestrator.registry.values import DEFAULT_CLUSTER, DEFAULT_PROJECT
from orchestrator.secret_file import write_secret

RAY_ADDRESS = "http://127.0.0.1:8265"
RAY_TOKEN = "~/.ray/auth_token"
TOKEN_FILE = "service-token"
FIRST_TOKEN_LABEL = "first-admin"
"""Label of the token that the first start creates."""
GRACE_S = 10
"""Seconds that requests have to finish; streams are closed before."""
BACKLOG = 2048
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

log = logging.getLogger(__name__)

ConnectClusters = Callable[[ServiceConfig], dict[str, Cluster]]


@dataclass(frozen=True)
class ListenOptions:
    """Address of the server, and TLS."""

    host: str = "127.0.0.1"
    port: int = 8321
    certificate: Path | None = None
    key: Path | None = None
    insecure: bool = False
    """Whether tokens may be sent unencrypted by other machines."""

    @property
    def scheme(self) -> str:
        """Return the scheme of the server's URL."""
        return "http" if self.certificate is None else "https"


def make_default_config(database: str | None) -> ServiceConfig:
    """Return the configuration without a file: the local Ray, as the cluster `default`."""
    cluster = {"address": RAY_ADDRESS, "token_file": RAY_TOKEN, "shared_filesystem": True}
    return parse_config({"clusters": {DEFAULT_CLUSTER: cluster}}, database)


def check_listen_options(options: ListenOptions) -> None:
    """Raise InputError if tokens would be sent unencrypted, or if the TLS files are unusable."""
    faults = []
    if (options.certificate is None) != (options.key is None):
        faults.append(
            Fault("--tls-cert", "--tls-cert and --tls-key require each other", "Pass both.")
        )
    elif options.certificate is None and not options.insecure and not _is_loopback(options.host):
        problem = f"other machines can reach {options.host[:100]!a}, so tokens would be unencrypted"
        remedy = "Pass --tls-cert and --tls-key, or --insecure-http behind a proxy with TLS."
        faults.append(Fault("--host", problem, remedy))
    elif options.certificate is not None and options.key is not None:
        faults += _check_certificate(options.certificate, options.key)
    if faults:
        raise InputError(faults)


def serve(
    config: ServiceConfig,
    options: ListenOptions,
    connect_clusters: ConnectClusters,
    *,
    on_ready: Callable[[str, Path | None], None],
) -> int:
    """Serve until a signal. Return 0, or 1 if a thread of the service has failed.

    `on_ready` gets the URL, and the file of the first token if this start has created it.
    Raise InputError or DatabaseUnreachable if the service can't start.
    """
    check_listen_options(options)
    listener = _open_listener(options)
    upgrade(config.database)
    database = open_registry(config.database)
    try:
        new_token_file = ensure_first_token(database, locate_token_file(config.database))
        service = Service(config, database, connect_clusters(config))
        apply_policy(service.trust)
        server = Server(make_app(service), options)
        host, port = listener.getsockname()[:2]
        display_host = f"[{host}]" if ":" in host else host
        service.start()
        try:
            with server.stop_on_signals():
                on_ready(f"{options.scheme}://{display_host}:{port}", new_token_file)
                server.run(sockets=[listener])
        finally:
            service.close()
        return 0 if service.failure is None else 1
    finally:
        listener.close()
        database.close()


def locate_token_file(database: str) -> Path:
    """Return the file of the first token: beside a SQLite database, otherwise in .cache."""
    url = parse_database_url(database)
    if url.get_backend_name() == "sqlite" and url.database is not None:
        return Path(url.database).parent / TOKEN_FILE
    return Path(".cache").resolve() / TOKEN_FILE


def ensure_first_token(database: Database, file: Path) -> Path | None:
    """Create an admin token if there is none, and return its file; otherwise return None.

    The file is written before the token is committed: after a crash in between, its token is not
    valid, and the next start replaces it.
    """
    with database.write() as session:
        projects.ensure_project(session, DEFAULT_PROJECT)
        if any(
            token.project is None and token.scope == "admin"
            for token in tokens.list_tokens(session)
        ):
            return None
        token, secret = tokens.issue(session, FIRST_TOKEN_LABEL, "admin")
        record_token(session, make_local_actor(), None, token)
        write_secret(file, secret)
    return file


class Server(uvicorn.Server):
    """A server that closes its streams before it waits for them, and stops with the service."""

    def __init__(self, app: FastAPI, options: ListenOptions) -> None:
        self._hub: StreamHub = app.state.hub
        self._service: Service = app.state.service
        proxies = list(self._service.config.trusted_proxies)
        super().__init__(
            uvicorn.Config(
                app,
                access_log=False,
                log_config=None,
                server_header=False,
                http=make_protocol_class(app.state.connections),
                # No route uses it, and an upgraded connection would leave its guard.
                ws="none",
                timeout_graceful_shutdown=GRACE_S,
                # By default uvicorn believes every client on this machine.
                proxy_headers=bool(proxies),
                forwarded_allow_ips=proxies,
                ssl_certfile=options.certificate,
                ssl_keyfile=options.key,
            )
        )

    @contextmanager
    def stop_on_signals(self) -> Iterator[None]:
        """Let signals stop the server from its announcement on, but not interrupt its cleanup.

        Uvicorn raises the signals that it caught again: these handlers catch them too.
        """
        previous = {number: signal.signal(number, self.handle_exit) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    async def on_tick(self, counter: int) -> bool:
        """Stop after a signal, or if a thread of the service has failed."""
        return await super().on_tick(counter) or not self._service.is_alive

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the streams first: their followers reconnect to another instance."""
        await self._hub.close()
        # Let the streams write their last bytes before the connections are closed.
        await asyncio.sleep(0)
        await super().shutdown(sockets)


def _open_listener(options: ListenOptions) -> socket.socket:
    """Bind the port before anything starts, so that a port in use costs nothing."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        problem = f"{options.host[:100]}:{options.port} is not available: {error.strerror or error}"
        raise InputError(
            [Fault("--port", problem, "Use another port; 0 picks a free one.")]
        ) from error
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_certificate(certificate: Path, key: Path) -> list[Fault]:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        problem = f"{certificate} and {key} can't be loaded: {error.strerror or error}"
        return [Fault("--tls-cert", problem, "Use a PEM certificate and its key.")]
    return []
