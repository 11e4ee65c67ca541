"""`slora data preview`: what a model learns from the first rows of a spec, token by token."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.commands.adapter_jobs import run_job_module
from orchestrator.cli.options import Json, Overrides, SpecFile

app = typer.Typer(
    no_args_is_help=True, help="Show what a model learns from the rows of a spec, token by token."
)


@app.callback()
def _define_group() -> None:
    # Typer needs a callback to make a group of an app with one command.
    return


@app.command()
def preview(
    spec: SpecFile,
    rows: Annotated[int, typer.Option(min=1, help="Number of rows to show.")] = 3,
    row: Annotated[
        str | None, typer.Option(metavar="FILE:LINE", help="Show the row at this place only.")
    ] = None,
    set: Overrides = None,
    json: Json = False,
) -> None:
    """Show the first rows as the model gets them, with the learnt tokens marked."""
    arguments = ["--spec", str(spec), "--rows", str(rows), *(["--row", row] if row else [])]
    for override in set or []:
        arguments += ["--set", override]
    run_job_module("jobs.tools.preview", [*arguments, *(["--json"] if json else [])])
