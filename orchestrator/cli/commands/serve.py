"""`slora serve`: the service, its API and its first token, in the foreground."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.train.job_main import translate_import_error
from jobs.train.monitor.event_text import escape_control
from orchestrator.cli.console import CommandGroup, note

app = typer.Typer(cls=CommandGroup)

Config = Annotated[Path | None, typer.Option(help="Its YAML; without: this machine's own Ray.")]
Url = Annotated[
    str | None,
    typer.Option(
        help="sqlite:///FILE or postgresql://….", metavar="URL", envvar="SLORA_DATABASE"
    ),
]  # fmt: skip
Host = Annotated[str, typer.Option(help="Where it listens; others need TLS.")]
Port = Annotated[int, typer.Option(help="0 takes any.", min=0, max=65535)]
Certificate = Annotated[Path | None, typer.Option(help="PEM, its chain included.")]
Key = Annotated[Path | None, typer.Option(help="PEM, of that certificate.")]
Insecure = Annotated[
    bool, typer.Option("--insecure-http", help="Let tokens travel in the clear to other machines.")
]


@app.command()
def serve(
    config: Config = None,
    database: Url = None,
    host: Host = "127.0.0.1",
    port: Port = 8321,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    insecure_http: Insecure = False,
) -> None:
    """Run the service: it submits, follows, schedules and answers; Ctrl-C ends it."""
    try:
        from orchestrator.api.server import ListenOptions, make_default_config
        from orchestrator.api.server import serve as run
        from orchestrator.control.config import load_config
        from orchestrator.control.connect import connect_clusters
    except ModuleNotFoundError as error:
        raise translate_import_error(error, extra="service") from error
    service_config = (
        load_config(config, database) if config is not None else make_default_config(database)
    )
    listening = ListenOptions(host, port, tls_cert, tls_key, insecure_http)
    _log_to_stderr()
    raise typer.Exit(run(service_config, listening, connect_clusters, on_ready=_note_ready))


def _note_ready(address: str, token: Path | None) -> None:
    note(f"slora serves at {address}")
    if token is not None:
        note(f"A first admin token lies in {token}; nobody else on this machine can read it.")


class _LineFormatter(logging.Formatter):
    """One line an event, in which nothing that others wrote can begin another."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; a traceback, which is our own, keeps its lines."""
        text, trace = record.getMessage(), ""
        if record.exc_info:
            trace = "\n" + escape_control(self.formatException(record.exc_info))
        head = f"{self.formatTime(record)} {record.levelname} {record.name}: "
        return head + escape_control(text).replace("\n", "\\n") + trace


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # Each request to Ray and to a store would be a line.
    for name in ("httpx", "httpcore", "botocore", "boto3", "urllib3", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
