"""`slora tokens`: who may ask the service for what."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.errors import Fault, InputError
from orchestrator.client.values import Token
from orchestrator.commands.options import Json, Service
from orchestrator.commands.remote import asking
from orchestrator.console import Commands, note, print_json, say, show_table
from orchestrator.run_table import moment_text
from orchestrator.secret_file import write_secret

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Who may ask the service for what.")

DAY_S = 86400.0


@app.command()
def create(
    label: Annotated[str, typer.Argument(metavar="LABEL", help="Whose it is, as ci.")],
    scope: Annotated[str, typer.Option(help="viewer, submitter or admin.")] = "submitter",
    project: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of this project alone; else of all.")
    ] = None,
    days: Annotated[float | None, typer.Option(help="Until it expires.", min=0.001)] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there; it is not shown.")
    ] = None,
    service: Service = None,
    json: Json = False,
) -> None:
    """Make a token. It is told this once."""
    if to is not None and to.exists():
        raise InputError([Fault("--to", f"{to} is there already", "Name a new file.")])
    seconds = None if days is None else days * DAY_S
    with asking(service) as client:
        made = client.tokens.create(label, scope, project=project, seconds=seconds)
        if to is not None:
            try:
                write_secret(to, made.secret or "")
            except InputError:
                # Nobody knows it: it is as if it had not been made.
                client.tokens.revoke(made.id)
                raise
    if json:
        secret = {} if to is not None else {"secret": made.secret}
        print_json({**_described(made), **secret})
        return
    if to is None:
        say(made.secret or "")
    note(f"token {made.id} of {made.label}: {made.scope}, {_ends(made)}")
    note("It can't be shown again." if to is None else f"It is in {to}, for SLORA_TOKEN_FILE.")


@app.command("list")
def list_command(service: Service = None, json: Json = False) -> None:
    """Every token, dead ones too; none is shown."""
    with asking(service) as client:
        found = list(client.tokens.list())
    if json:
        print_json({"tokens": [_described(one) for one in found]})
        return
    rows = [(one.id, one.label, one.scope, one.project or "all", _ends(one)) for one in found]
    show_table(rows, headers=("token", "label", "scope", "project", ""))


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(metavar="ID", help="As slora tokens list has it.")],
    service: Service = None,
    json: Json = False,
) -> None:
    """From now on nobody is known by it."""
    with asking(service) as client:
        client.tokens.revoke(token)
    if json:
        print_json({"revoked": token})
    else:
        say(f"token {token} is revoked.")


def _ends(one: Token) -> str:
    if one.revoked_at is not None:
        return f"revoked {moment_text(one.revoked_at)}"
    if one.expires_at is None:
        return "for good"
    over = one.expires_at <= time.time()
    return f"{'expired' if over else 'until'} {moment_text(one.expires_at)} UTC"


def _described(one: Token) -> dict[str, Any]:
    found = asdict(one)
    del found["secret"]
    return found
