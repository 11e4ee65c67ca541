"""`slora tokens`: the access tokens of the service."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.errors import Fault, InputError
from orchestrator.cli.console import CommandGroup, note, print_json, print_line, show_table
from orchestrator.cli.options import Json, Service
from orchestrator.cli.remote import connect_service
from orchestrator.cli.render.run_table import format_time
from orchestrator.schemas.admin import TokenResponse
from orchestrator.secret_file import write_secret

app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, help="Manage access tokens of the service."
)

DAY_S = 86400.0


@app.command()
def create(
    label: Annotated[
        str, typer.Argument(metavar="LABEL", help="Owner or purpose of the token, for example ci.")
    ],
    scope: Annotated[str, typer.Option(help="Scope: viewer, submitter or admin.")] = "submitter",
    project: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Limit the token to this project. Default: all projects."
        ),
    ] = None,
    days: Annotated[
        float | None, typer.Option(help="Days until the token expires. Default: never.", min=0.001)
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the token to this file instead of showing it."),
    ] = None,
    service: Service = None,
    json: Json = False,
) -> None:
    """Create a token. It is shown only once."""
    if to is not None and to.exists():
        raise InputError([Fault("--to", f"{to} exists already", "Use a new file.")])
    seconds = None if days is None else days * DAY_S
    with connect_service(service) as client:
        created = client.tokens.create(label, scope, project=project, seconds=seconds)
        if to is not None:
            try:
                write_secret(to, created.secret)
            except InputError:
                # Nobody has seen the token: revoke it, as if it had never been created.
                client.tokens.revoke(created.id)
                raise
    if json:
        secret = {} if to is not None else {"secret": created.secret}
        print_json({**_dump_token(created), **secret})
        return
    if to is None:
        print_line(created.secret)
    note(
        f"Created token {created.id} ({created.label}): {created.scope}, {_format_expiry(created)}."
    )
    note("It can't be shown again." if to is None else f"Set SLORA_TOKEN_FILE={to} to use it.")


@app.command("list")
def list_command(service: Service = None, json: Json = False) -> None:
    """List all tokens, also expired and revoked ones, without their secrets."""
    with connect_service(service) as client:
        tokens = list(client.tokens.list())
    if json:
        print_json({"tokens": [_dump_token(item) for item in tokens]})
        return
    rows = [
        (item.id, item.label, item.scope, item.project or "all", _format_expiry(item))
        for item in tokens
    ]
    show_table(rows, headers=("token", "label", "scope", "project", ""))


@app.command()
def revoke(
    token: Annotated[
        str, typer.Argument(metavar="ID", help="Token id, as shown by slora tokens list.")
    ],
    service: Service = None,
    json: Json = False,
) -> None:
    """Revoke a token: it is rejected from now on."""
    with connect_service(service) as client:
        client.tokens.revoke(token)
    if json:
        print_json({"revoked": token})
    else:
        print_line(f"Revoked token {token}.")


def _format_expiry(token: TokenResponse) -> str:
    if token.revoked_at is not None:
        return f"revoked {format_time(token.revoked_at)}"
    if token.expires_at is None:
        return "never expires"
    is_expired = token.expires_at <= time.time()
    return f"{'expired' if is_expired else 'expires'} {format_time(token.expires_at)} UTC"


def _dump_token(token: TokenResponse) -> dict[str, Any]:
    return token.model_dump(exclude={"secret"})
