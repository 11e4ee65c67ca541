"""`slora logs`: the output of a run, until now or as it is written."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from orchestrator.cli.console import note
from orchestrator.cli.follow_remote import follow_run, make_writer
from orchestrator.cli.options import Service
from orchestrator.cli.remote import RunName, connect_service
from orchestrator.cli.render.run_table import explain_status

app = typer.Typer()


@app.command("logs")
def print_logs(
    run: RunName,
    follow_log: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Follow until the run finishes; exit 1 unless it succeeds."
        ),
    ] = False,
    service: Service = None,
) -> None:
    """Print the output of a run; -f follows it, even across restarts of the service."""
    with connect_service(service) as client:
        if follow_log:
            raise typer.Exit(follow_run(client, run))
        write, empty = make_writer(sys.stdout), True
        for text in client.runs.read_log(run):
            write(text)
            empty = False
        if empty:
            state = client.runs.get(run)
            reason_text = f": {explain_status(state)}" if explain_status(state) else ""
            note(f"{run} has no output yet. Its status is {state.status}{reason_text}.")
