"""The root of the command line. A command reads its options, makes a call and shows the result."""

from __future__ import annotations

import typer

from jobs.process_environment import prepare_environment
from orchestrator.cli.tree import LazyCommands

app = typer.Typer(
    cls=LazyCommands,
    no_args_is_help=True,
    help="Fine-tune transformers with SLoRA on Ray.",
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line."""
    app()


@app.callback()
def _define_root() -> None:
    # Before any library reads it.
    prepare_environment()
