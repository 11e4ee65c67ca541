"""`slora audit-log`: who changed what in the service."""

from __future__ import annotations

import re
import time
from typing import Annotated

import typer

from jobs.errors import Fault, InputError
from orchestrator.cli.console import CommandGroup, note, print_json
from orchestrator.cli.options import Json, Service
from orchestrator.cli.remote import connect_service
from orchestrator.cli.render.audit_entry_table import show_entries

app = typer.Typer(cls=CommandGroup)

DEFAULT_LIMIT = 50
"""Number of entries to list without --all."""
SECONDS = {"m": 60.0, "h": 3600.0, "d": 86400.0}

_AGE = re.compile(r"([0-9]{1,6})([mhd])")

Project = Annotated[
    str | None, typer.Option(metavar="NAME", help="Show changes in this project only.")
]
Action = Annotated[
    str | None,
    typer.Option(metavar="WORD", help="Show one kind of change only: submit, stop, create, …"),
]
Object = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Show changes of this run, schedule, adapter, project or token only."
    ),
]
Token = Annotated[
    str | None, typer.Option(metavar="ID", help="Show what the bearer of this token did only.")
]
Since = Annotated[
    str | None,
    typer.Option(metavar="AGE", help="Show changes that are not older: 30m, 24h or 7d."),
]
All = Annotated[
    bool, typer.Option("--all", help=f"Show all changes, not only the newest {DEFAULT_LIMIT}.")
]


@app.command("audit-log")
def audit_log(
    project: Project = None,
    action: Action = None,
    object: Object = None,
    token: Token = None,
    since: Since = None,
    show_all: All = False,
    service: Service = None,
    json: Json = False,
) -> None:
    """List who changed what in the service, newest first."""
    start = None if since is None else time.time() - _parse_age(since)
    # One more than is shown tells whether there are others.
    limit = None if show_all else DEFAULT_LIMIT + 1
    with connect_service(service) as client:
        entries = list(
            client.audit_log.list(
                project=project,
                action=action,
                object=object,
                token=token,
                since=start,
                max_items=limit,
            )
        )
    visible = entries if show_all else entries[:DEFAULT_LIMIT]
    has_more = len(entries) > len(visible)
    if json:
        print_json({"entries": [entry.model_dump() for entry in visible], "more": has_more})
        return
    if visible:
        show_entries(visible)
    else:
        note(
            "No changes match." if project or action or object or token or since else "No changes."
        )
    if has_more:
        note("Use --all to show older changes.")


def _parse_age(text: str) -> float:
    """Return the seconds of an age. Raise InputError."""
    match = _AGE.fullmatch(text)
    if match is None:
        problem = f"{text[:40]!a} is not an age"
        raise InputError([Fault("--since", problem, "Use minutes, hours or days: 30m, 24h, 7d.")])
    return int(match[1]) * SECONDS[match[2]]
