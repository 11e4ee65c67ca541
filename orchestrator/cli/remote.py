"""Commands that use the service: their options, the connection, the completion of names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Annotated

import typer

from orchestrator.cli.console import note
from orchestrator.client.client import ServiceClient
from orchestrator.client.retry import RetryBudget

COMPLETION_S = 0.8
"""Longest wait after a press of Tab."""
MAX_COMPLETIONS = 50


@contextmanager
def connect_service(service: str | None) -> Iterator[ServiceClient]:
    """Yield a client for the duration of a command."""
    with ServiceClient(service, on_retry=_note_retry) as client:
        if client.transport.settings.is_token_exposed:
            note(f"{client.transport.settings.url}: the token is sent unencrypted. Use https://.")
        yield client


def _note_retry(reason: str) -> None:
    note(f"The service does not answer ({reason.rstrip('.')}); trying again …")


def complete_names(
    list_names: Callable[[ServiceClient], Iterator[str]], incomplete: str
) -> list[str]:
    """Return names for a shell, or none: a completion is fast and never an error."""
    try:
        with ServiceClient(retry_budget=RetryBudget(request_s=0.0)) as client:
            # The service sorts them: the newest ones are the most likely.
            return [
                name
                for name in islice(list_names(client), MAX_COMPLETIONS)
                if name.startswith(incomplete)
            ]
    except Exception:
        # Any error would be printed into the command line that is being typed.
        return []


def complete_runs(incomplete: str) -> list[str]:
    """Return the newest run ids for a shell."""
    return complete_names(
        lambda client: (
            run.id for run in client.runs.list(max_items=MAX_COMPLETIONS, timeout_s=COMPLETION_S)
        ),
        incomplete,
    )


RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="Run id, as shown by slora runs.", autocompletion=complete_runs
    ),
]
Project = Annotated[str | None, typer.Option(metavar="NAME", help="Project. Default: the token's.")]


def resolve_project(client: ServiceClient, name: str | None) -> str:
    """Return the given project, the token's, or the default one, which always exists."""
    return name or client.get_me().project or "default"
