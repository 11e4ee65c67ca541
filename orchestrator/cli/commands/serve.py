"""`slora serve`: run the service and its API in the foreground."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.train.job_main import require_extra
from jobs.train.monitor.event_text import escape_control
from orchestrator.cli.console import CommandGroup, note

app = typer.Typer(cls=CommandGroup)

Config = Annotated[
    Path | None, typer.Option(help="YAML configuration. Default: one cluster, this machine's Ray.")
]
Url = Annotated[
    str | None,
    typer.Option(
        help="Database: sqlite:///FILE or postgresql://….",
        metavar="URL",
        envvar="SLORA_DATABASE",
    ),
]  # fmt: skip
Host = Annotated[str, typer.Option(help="Address to listen on; other than loopback needs TLS.")]
Port = Annotated[
    int, typer.Option(help="Port to listen on; 0 selects a free one.", min=0, max=65535)
]
Certificate = Annotated[Path | None, typer.Option(help="TLS certificate with its chain (PEM).")]
Key = Annotated[Path | None, typer.Option(help="Private key of the certificate (PEM).")]
Insecure = Annotated[
    bool, typer.Option("--insecure-http", help="Accept unencrypted tokens from other machines.")
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
    """Run the service and its API in the foreground; Ctrl-C stops it."""
    with require_extra("service"):
        from orchestrator.api.server import ListenOptions, make_default_config
        from orchestrator.api.server import serve as run
        from orchestrator.control.config import load_config
        from orchestrator.control.connect import connect_clusters
    service_config = (
        load_config(config, database) if config is not None else make_default_config(database)
    )
    listening = ListenOptions(host, port, tls_cert, tls_key, insecure_http)
    _log_to_stderr()
    raise typer.Exit(run(service_config, listening, connect_clusters, on_ready=_note_ready))


def _note_ready(address: str, token: Path | None) -> None:
    note(f"Serving at {address}")
    if token is not None:
        note(f"The first admin token is in {token}, readable only by you.")


class _LineFormatter(logging.Formatter):
    """Format a record as one line: untrusted text can't start another."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback keeps its own lines."""
        text, trace = record.getMessage(), ""
        if record.exc_info:
            trace = "\n" + escape_control(self.formatException(record.exc_info))
        request_id = getattr(record, "request_id", None)
        request = f" [{request_id}]" if request_id else ""
        head = f"{self.formatTime(record)} {record.levelname} {record.name}{request}: "
        return head + escape_control(text).replace("\n", "\\n") + trace


def _log_to_stderr() -> None:
    from orchestrator.api.request_ids import RequestIdFilter

    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RequestIdFilter())
    handler.setFormatter(_LineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # These would log every request to Ray and to a store.
    for name in ("httpx", "httpcore", "botocore", "boto3", "urllib3", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
