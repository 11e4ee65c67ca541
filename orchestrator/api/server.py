"""The service as a process: its database, its first token, its server, and its end."""

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
from orchestrator.api.stream_hub import StreamHub
from orchestrator.cluster.base import Cluster
from orchestrator.control.config import ServiceConfig, parse_config
from orchestrator.control.supervisor import Service
from orchestrator.registry import projects, tokens
from orchestrator.registry.database import Database, parse_database_url
from orchestrator.registry.migrate import open_registry, upgrade
from orchestrator.registry.values import DEFAULT_CLUSTER, DEFAULT_PROJECT
from orchestrator.secret_file import write_secret

RAY_ADDRESS = "http://127.0.0.1:8265"
RAY_TOKEN = "~/.ray/auth_token"
TOKEN_FILE = "service-token"
FIRST_TOKEN_LABEL = "first-admin"
"""The label of the token that the first start makes."""
GRACE_S = 10
"""That requests have to end; streams were ended before."""
BACKLOG = 2048
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

log = logging.getLogger(__name__)

ConnectClusters = Callable[[ServiceConfig], dict[str, Cluster]]


@dataclass(frozen=True)
class ListenOptions:
    """Where the server listens, and how."""

    host: str = "127.0.0.1"
    port: int = 8321
    certificate: Path | None = None
    key: Path | None = None
    insecure: bool = False
    """Whether tokens may travel in the clear to other machines."""

    @property
    def scheme(self) -> str:
        """Of its address."""
        return "http" if self.certificate is None else "https"


def make_default_config(database: str | None) -> ServiceConfig:
    """Without a file: the Ray of this machine, under the name `default`."""
    cluster = {"address": RAY_ADDRESS, "token_file": RAY_TOKEN, "shared_filesystem": True}
    return parse_config({"clusters": {DEFAULT_CLUSTER: cluster}}, database)


def check_listen_options(options: ListenOptions) -> None:
    """Raises InputError where tokens would travel in the clear, or TLS can't be had."""
    faults = []
    if (options.certificate is None) != (options.key is None):
        faults.append(
            Fault(
                "--tls-cert", "a certificate needs its key, and a key its certificate", "Give both."
            )
        )
    elif options.certificate is None and not options.insecure and not _is_loopback(options.host):
        problem = (
            f"{options.host[:100]!a} is reached by others, and tokens would travel in the clear"
        )
        remedy = "Give --tls-cert and --tls-key, or --insecure-http behind a proxy that has TLS."
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
    """Serves until a signal; 0, or 1 where a thread of the service ended.

    `ready` is told the address, and where the first token lies if this start made it.
    Raises InputError, DatabaseUnreachable.
    """
    check_listen_options(options)
    listener = _open_listener(options)
    upgrade(config.database)
    database = open_registry(config.database)
    try:
        new_token_file = ensure_first_token(database, locate_token_file(config.database))
        service = Service(config, database, connect_clusters(config))
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
    """Where the first token is kept: beside a SQLite database, else in .cache."""
    url = parse_database_url(database)
    if url.get_backend_name() == "sqlite" and url.database is not None:
        return Path(url.database).parent / TOKEN_FILE
    return Path(".cache").resolve() / TOKEN_FILE


def ensure_first_token(database: Database, file: Path) -> Path | None:
    """The file of a new admin token where the service has none yet; else None.

    The file is written before the token counts: whoever is killed between has a file that opens
    nothing, and the next start writes it anew.
    """
    with database.write() as session:
        projects.ensure_project(session, DEFAULT_PROJECT)
        if any(
            token.project is None and token.scope == "admin"
            for token in tokens.list_tokens(session)
        ):
            return None
        _, secret = tokens.issue(session, FIRST_TOKEN_LABEL, "admin")
        write_secret(file, secret)
    return file


class Server(uvicorn.Server):
    """A server that ends its streams before it waits for them, and itself with the service."""

    def __init__(self, app: FastAPI, options: ListenOptions) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
                ssl_certfile=options.certificate,
                ssl_keyfile=options.key,
            )
        )
        self._hub: StreamHub = app.state.hub
        self._service: Service = app.state.service

    @contextmanager
    def stop_on_signals(self) -> Iterator[None]:
        """From the announcement on a signal ends the server, and never what is closed after it.

        Uvicorn raises again what it caught while it ran: that meets these handlers too.
        """
        previous = {number: signal.signal(number, self.handle_exit) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    async def on_tick(self, counter: int) -> bool:
        """Ends where a signal came, or a thread of the service is gone."""
        return await super().on_tick(counter) or not self._service.is_alive

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Streams first: their followers come again, to whoever serves then."""
        await self._hub.close()
        # They write their last bytes before the connections are asked to end.
        await asyncio.sleep(0)
        await super().shutdown(sockets)


def _open_listener(options: ListenOptions) -> socket.socket:
    """Bound before anything is started, so that a port in use costs nothing."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        problem = f"{options.host[:100]}:{options.port} can't be had: {error.strerror or error}"
        raise InputError([Fault("--port", problem, "Use another; 0 takes any.")]) from error
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
        problem = f"{certificate} and {key} can't be used: {error.strerror or error}"
        return [Fault("--tls-cert", problem, "Use PEM files that belong together.")]
    return []
