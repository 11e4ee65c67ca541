"""`slora runs` and `slora stop`: what the service runs, and an end to it."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from orchestrator.commands.options import Json, Service
from orchestrator.commands.remote import MaybeRun, RunName, asking
from orchestrator.console import note, print_json, say
from orchestrator.run_table import described, show_run, show_runs

app = typer.Typer()

SHOWN = 20
"""Runs that one looks at; --all is for the rest."""
Project = Annotated[str | None, typer.Option(metavar="NAME", help="Of this project alone.")]
Status = Annotated[
    str | None, typer.Option(metavar="STATUS", help="planned, running, done, failed …")
]
Kind = Annotated[
    str | None, typer.Option(metavar="KIND", help="finetune, search, retrain or federate.")
]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="As its spec is called.")]


@app.command()
def runs(
    run: MaybeRun = None,
    status: Status = None,
    project: Project = None,
    kind: Kind = None,
    name: Name = None,
    every: Annotated[bool, typer.Option("--all", help=f"Not the newest {SHOWN} alone.")] = False,
    service: Service = None,
    json: Json = False,
) -> None:
    """The service's runs, the newest first; with RUN: its attempts, why it ended, what next."""
    with asking(service) as client:
        if run is not None:
            found = client.runs.get(run)
            print_json(described(found)) if json else show_run(found)
            return
        # One more than is shown tells whether there are others.
        most = None if every else SHOWN + 1
        asked = client.runs.list(project=project, status=status, name=name, kind=kind, most=most)
        listed = list(asked)
    shown = listed if every else list(islice(listed, SHOWN))
    if json:
        print_json({"runs": [described(one) for one in shown], "more": len(listed) > len(shown)})
    elif shown:
        show_runs(shown)
    else:
        note(
            "No such runs."
            if status or project or kind or name
            else "No runs yet: slora submit SPEC."
        )
    if len(listed) > len(shown) and not json:
        note("Older ones: --all.")


@app.command()
def stop(run: RunName, service: Service = None, json: Json = False) -> None:
    """Ask a run to end; it keeps its checkpoints, and one that is over stays what it is."""
    with asking(service) as client:
        found = client.runs.stop(run)
    if json:
        print_json(described(found))
    elif found.over:
        say(f"{run} is over already: {found.status}.")
    else:
        say(f"{run} is asked to end. `slora runs {run}` tells when it has.")
