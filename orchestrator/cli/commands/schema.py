"""`slora schema`: the JSON Schema of a spec."""

from __future__ import annotations

import typer

from jobs.spec.schema import RunSpec
from orchestrator.cli.console import print_json

app = typer.Typer()


@app.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of a spec, with all its sections, for editors and programs."""
    print_json(RunSpec.model_json_schema())
