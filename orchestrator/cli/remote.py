"""A command that asks the service: its options, the connection, names that complete themselves."""

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
"""Who presses Tab waits no longer than this."""
MAX_COMPLETIONS = 50


@contextmanager
def connect_service(service: str | None) -> Iterator[ServiceClient]:
    """A client for the length of a command."""
    with ServiceClient(service, on_retry=_note_retry) as client:
        if client.transport.settings.is_token_exposed:
            note(f"{client.transport.settings.url}: the token travels unencrypted; use https://.")
        yield client


def _note_retry(reason: str) -> None:
    note(f"the service does not answer ({reason.rstrip('.')}); trying again …")


def complete_names(
    list_names: Callable[[ServiceClient], Iterator[str]], incomplete: str
) -> list[str]:
    """Names for a shell, or none: a completion is quick and never an error."""
    try:
        with ServiceClient(retry_budget=RetryBudget(request_s=0.0)) as client:
            # Sorted by who answers: the newest are wanted most.
            return [
                name
                for name in islice(list_names(client), MAX_COMPLETIONS)
                if name.startswith(incomplete)
            ]
    except Exception:
        # Whatever it is, it would land in the middle of what is being typed.
        return []


def _complete_runs(incomplete: str) -> list[str]:
    return complete_names(
        lambda client: (
            run.id for run in client.runs.list(max_items=MAX_COMPLETIONS, timeout_s=COMPLETION_S)
        ),
        incomplete,
    )


RunName = Annotated[
    str,
    typer.Argument(metavar="RUN", help="As slora runs lists it.", autocompletion=_complete_runs),
]
OptionalRun = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="One of them.", autocompletion=_complete_runs)
]
Project = Annotated[str | None, typer.Option(metavar="NAME", help="Instead of the token's.")]


def resolve_project(client: ServiceClient, name: str | None) -> str:
    """The project that is meant: the named one, the token's, or the one that is always there."""
    return name or client.get_me().project or "default"
