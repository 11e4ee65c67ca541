"""`slora runs`: list the runs of the service, show one of them, delete those that ended."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.console import CommandGroup, note, print_json, print_line
from orchestrator.cli.options import Json, Service
from orchestrator.cli.remote import RunName, complete_runs, connect_service
from orchestrator.cli.render import run_table
from orchestrator.client.client import ServiceClient
from orchestrator.client.errors import ClientError
from orchestrator.schemas.runs import DeletedRunResponse, StartResponse

app = typer.Typer(cls=CommandGroup, invoke_without_command=True)

DEFAULT_LIMIT = 20
"""Number of runs to list without --all."""
Project = Annotated[
    str | None, typer.Option(metavar="NAME", help="Show runs of this project only.")
]
Status = Annotated[
    str | None,
    typer.Option(metavar="STATUS", help="Show runs with this status only: planned, running, …"),
]
Kind = Annotated[
    str | None,
    typer.Option(metavar="KIND", help="Show finetune, search, retrain or federate runs only."),
]
Name = Annotated[
    str | None, typer.Option(metavar="NAME", help="Show runs whose spec has this name only.")
]
All = Annotated[
    bool, typer.Option("--all", help=f"Show all runs, not only the newest {DEFAULT_LIMIT}.")
]

RunNames = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...", help="Run ids, as shown by slora runs.", autocompletion=complete_runs
    ),
]


@app.callback()
def list_runs(
    context: typer.Context,
    status: Status = None,
    project: Project = None,
    kind: Kind = None,
    name: Name = None,
    show_all: All = False,
    service: Service = None,
    json: Json = False,
) -> None:
    """List the runs of the service, newest first, or show one run."""
    if context.invoked_subcommand is not None:
        return
    # One more than is shown tells whether there are others.
    limit = None if show_all else DEFAULT_LIMIT + 1
    with connect_service(service) as client:
        runs = list(
            client.runs.list(project=project, status=status, name=name, kind=kind, max_items=limit)
        )
    visible_runs = runs if show_all else runs[:DEFAULT_LIMIT]
    has_more = len(runs) > len(visible_runs)
    if json:
        print_json({"runs": [run_table.dump_run(run) for run in visible_runs], "more": has_more})
        return
    if visible_runs:
        run_table.show_runs(visible_runs)
    elif status or project or kind or name:
        note("No runs match.")
    else:
        note("No runs yet. Submit one: slora submit SPEC.")
    if has_more:
        note("Use --all to show older runs.")


@app.command()
def show(run: RunName, service: Service = None, json: Json = False) -> None:
    """Show a run: its attempts, the phases of its start, why it ended, and what to do next."""
    with connect_service(service) as client:
        details = client.runs.get(run)
        starts = _read_starts(client, run)
    if json:
        values = {"starts": [start.model_dump() for start in starts]}
        print_json({**run_table.dump_run(details), **values})
    else:
        run_table.show_run(details, starts)


def _read_starts(client: ServiceClient, run: str) -> list[StartResponse]:
    """Return the run's starts; without its store, or from an older service, none."""
    try:
        return client.runs.get_starts(run).starts
    except ClientError as error:
        note(f"The phases of its start are not shown: {error}")
        return []


@app.command()
def delete(runs: RunNames, service: Service = None, json: Json = False) -> None:
    """Delete runs that have ended, with their events and files; committed adapters stay."""
    removed = []
    with connect_service(service) as client:
        for run in runs:
            removed.append(client.runs.delete(run))
            if not json:
                _show_removed(removed[-1])
    if json:
        print_json({"deleted": [item.model_dump() for item in removed]})


def _show_removed(removed: DeletedRunResponse) -> None:
    retained = (
        f" {removed.retained_files} files stay: {removed.reason}." if removed.retained_files else ""
    )
    print_line(f"Deleted run {removed.run} and {removed.files} files.{retained}")
