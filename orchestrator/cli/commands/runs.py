"""`slora runs` and `slora stop`: what the service runs, and an end to it."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from orchestrator.cli.console import note, print_json, print_line
from orchestrator.cli.options import Json, Service
from orchestrator.cli.remote import OptionalRun, RunName, connect_service
from orchestrator.cli.render.run_table import dump_run, show_run, show_runs

app = typer.Typer()

DEFAULT_LIMIT = 20
"""Runs that one looks at; --all is for the rest."""
Project = Annotated[str | None, typer.Option(metavar="NAME", help="Of this project alone.")]
Status = Annotated[
    str | None, typer.Option(metavar="STATUS", help="planned, running, done, failed …")
]
Kind = Annotated[
    str | None, typer.Option(metavar="KIND", help="finetune, search, retrain or federate.")
]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="As its spec is called.")]


@app.command("runs")
def list_runs(
    run: OptionalRun = None,
    status: Status = None,
    project: Project = None,
    kind: Kind = None,
    name: Name = None,
    every: Annotated[
        bool, typer.Option("--all", help=f"Not the newest {DEFAULT_LIMIT} alone.")
    ] = False,
    service: Service = None,
    json: Json = False,
) -> None:
    """The service's runs, the newest first; with RUN: its attempts, why it ended, what next."""
    with connect_service(service) as client:
        if run is not None:
            details = client.runs.get(run)
            print_json(dump_run(details)) if json else show_run(details)
            return
        # One more than is shown tells whether there are others.
        limit = None if every else DEFAULT_LIMIT + 1
        matching_runs = client.runs.list(
            project=project, status=status, name=name, kind=kind, max_items=limit
        )
        listed = list(matching_runs)
    visible = listed if every else list(islice(listed, DEFAULT_LIMIT))
    if json:
        print_json(
            {"runs": [dump_run(item) for item in visible], "more": len(listed) > len(visible)}
        )
    elif visible:
        show_runs(visible)
    else:
        note(
            "No such runs."
            if status or project or kind or name
            else "No runs yet: slora submit SPEC."
        )
    if len(listed) > len(visible) and not json:
        note("Older ones: --all.")


@app.command("stop")
def stop_run(run: RunName, service: Service = None, json: Json = False) -> None:
    """Ask a run to end; it keeps its checkpoints, and one that is over stays what it is."""
    with connect_service(service) as client:
        state = client.runs.stop(run)
    if json:
        print_json(dump_run(state))
    elif state.is_final:
        print_line(f"{run} is over already: {state.status}.")
    else:
        print_line(f"{run} is asked to end. `slora runs {run}` tells when it has.")
