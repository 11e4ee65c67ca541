"""`slora submit`: submit a spec to the service as a run."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from orchestrator.cli.console import note, print_json, print_line
from orchestrator.cli.follow_remote import follow_run
from orchestrator.cli.options import Json, Overrides, Service, SpecFile
from orchestrator.cli.remote import Project, connect_service
from orchestrator.cli.render.run_table import dump_run
from orchestrator.cli.submission import read_submission
from orchestrator.client.runs import make_submission

app = typer.Typer()

Priority = Annotated[
    int | None, typer.Option(min=-1000, max=1000, help="Higher priorities run first. Default: 0.")
]
Cluster = Annotated[
    str | None, typer.Option(metavar="NAME", help="Cluster, as shown by slora clusters.")
]


@app.command()
def submit(
    spec: SpecFile,
    set: Overrides = None,
    project: Project = None,
    cluster: Cluster = None,
    priority: Priority = None,
    follow_log: Annotated[
        bool,
        typer.Option(
            "--follow/--detach",
            "-f",
            help="Follow until the run finishes; exit 1 unless it succeeds.",
        ),
    ] = False,
    service: Service = None,
    json: Json = False,
) -> None:
    """Submit a spec of any kind to the service."""
    prepared = read_submission(spec, set or [])
    for key in prepared.missing_keys:
        note(f"{key} does not exist on this machine: the job checks it on the cluster.")
    submission = make_submission(
        prepared.spec, kind=prepared.kind, project=project, cluster=cluster, priority=priority
    )
    with connect_service(service) as client:
        run = client.runs.submit(submission)
        if not json:
            print_line(run.id) if not follow_log else note(f"run {run.id}")
        if not follow_log:
            if json:
                print_json(dump_run(run))
            else:
                note(f"Follow it: slora logs -f {run.id}")
            return
        code = follow_run(client, run.id, out=sys.stderr if json else None)
        if json:
            print_json(dump_run(client.runs.get(run.id)))
        raise typer.Exit(code)
