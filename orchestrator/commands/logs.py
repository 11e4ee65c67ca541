"""`slora logs`: what a run prints, now or as it comes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from orchestrator.commands.options import Service
from orchestrator.commands.remote import RunName, asking
from orchestrator.console import note
from orchestrator.run_table import why
from orchestrator.tail import follow, writer

app = typer.Typer()


@app.command()
def logs(
    run: RunName,
    follow_it: Annotated[
        bool, typer.Option("--follow", "-f", help="To its end; exit code 1 unless it is done.")
    ] = False,
    service: Service = None,
) -> None:
    """What a run prints; -f follows it, over restarts of the service too."""
    with asking(service) as client:
        if follow_it:
            raise typer.Exit(follow(client, run))
        write, empty = writer(sys.stdout), True
        for text in client.runs.log_now(run):
            write(text)
            empty = False
        if empty:
            there = client.runs.get(run)
            waits = f": {why(there)}" if why(there) else ""
            note(f"{run} has printed nothing yet; it is {there.status}{waits}.")
