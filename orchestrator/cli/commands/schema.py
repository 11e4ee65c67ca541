"""`slora schema`: what may stand in a spec, for editors and programs."""

from __future__ import annotations

import typer

from jobs.spec.schema import RunSpec
from orchestrator.cli.console import print_json

app = typer.Typer()


@app.command("schema")
def print_schema() -> None:
    """The spec's JSON Schema, for editors and programs; with search:, retrain: and federation:."""
    print_json(RunSpec.model_json_schema())
