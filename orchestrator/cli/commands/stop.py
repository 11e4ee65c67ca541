"""`slora stop`: request the end of a run."""

from __future__ import annotations

import typer

from orchestrator.cli.console import print_json, print_line
from orchestrator.cli.options import Json, Service
from orchestrator.cli.remote import RunName, connect_service
from orchestrator.cli.render.run_table import dump_run

app = typer.Typer()


@app.command()
def stop(run: RunName, service: Service = None, json: Json = False) -> None:
    """Stop a run; it keeps its checkpoints. A finished run is not changed."""
    with connect_service(service) as client:
        state = client.runs.stop(run)
    if json:
        print_json(dump_run(state))
    elif state.is_final:
        print_line(f"{run} has already ended: {state.status}.")
    else:
        print_line(f"Requested a stop of {run}. See `slora runs show {run}`.")
