"""The command line. Every command is a thin door: it reads its options, calls, and shows."""

from __future__ import annotations

import typer

from orchestrator.cli.tree import LazyCommands

app = typer.Typer(
    cls=LazyCommands,
    no_args_is_help=True,
    help="Fine-tune transformers with SLoRA on Ray.",
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The console script."""
    app()


@app.callback()
def _define_root() -> None:
    # Typer wants something of its own to hang the tree on.
    return
