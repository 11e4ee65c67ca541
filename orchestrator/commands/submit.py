"""`slora submit`: a spec becomes a run of the service."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from orchestrator.client.runs import Submission
from orchestrator.commands.options import Json, Overrides, Service, SpecFile
from orchestrator.commands.remote import Project, asking
from orchestrator.console import note, print_json, say
from orchestrator.run_table import described
from orchestrator.submission import read_submission
from orchestrator.tail import follow

app = typer.Typer()

Priority = Annotated[
    int | None, typer.Option(min=-1000, max=1000, help="The higher, the sooner; 0 is usual.")
]
Cluster = Annotated[str | None, typer.Option(metavar="NAME", help="As slora clusters lists it.")]


@app.command()
def submit(
    spec: SpecFile,
    set: Overrides = None,
    project: Project = None,
    cluster: Cluster = None,
    priority: Priority = None,
    follow_it: Annotated[
        bool,
        typer.Option("--follow/--detach", "-f", help="To its end; exit code 1 unless it is done."),
    ] = False,
    service: Service = None,
    json: Json = False,
) -> None:
    """Submit a spec to the service: a fine-tune, or what its section (search: ...) makes of it."""
    sent = read_submission(spec, set or [])
    for key in sent.absent:
        note(f"{key} is not on this machine: the job checks it on the cluster.")
    asked = Submission(sent.spec, sent.kind, project, cluster, priority)
    with asking(service) as client:
        run = client.runs.submit(asked)
        if not json:
            say(run.id) if not follow_it else note(f"run {run.id}")
        if not follow_it:
            if json:
                print_json(described(run))
            else:
                note(f"follow it: slora logs -f {run.id}")
            return
        code = follow(client, run.id, out=sys.stderr if json else None)
        if json:
            print_json(described(client.runs.get(run.id)))
        raise typer.Exit(code)
