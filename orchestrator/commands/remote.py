"""A command that asks the service: its options, the connection, names that complete themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Annotated

import typer

from orchestrator.client.client import Client
from orchestrator.client.pauses import Patience
from orchestrator.console import note

COMPLETION_S = 0.8
"""Who presses Tab waits no longer than this."""
OFFERED = 50


@contextmanager
def asking(service: str | None) -> Iterator[Client]:
    """A client for the length of a command."""
    with Client(service, waiting=_wait) as client:
        if client.wire.settings.in_clear:
            note(f"{client.wire.settings.service}: the token travels unencrypted; use https://.")
        yield client


def _wait(why: str) -> None:
    note(f"the service does not answer ({why.rstrip('.')}); trying again …")


def offered(names: Callable[[Client], Iterator[str]], incomplete: str) -> list[str]:
    """Names for a shell, or none: a completion is quick and never an error."""
    try:
        with Client(patience=Patience(ask_s=0.0)) as client:
            # Sorted by who answers: the newest are wanted most.
            return [one for one in islice(names(client), OFFERED) if one.startswith(incomplete)]
    except Exception:
        # Whatever it is, it would land in the middle of what is being typed.
        return []


def _runs(incomplete: str) -> list[str]:
    return offered(
        lambda client: (run.id for run in client.runs.list(most=OFFERED, within=COMPLETION_S)),
        incomplete,
    )


RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="As slora runs lists it.", autocompletion=_runs)
]
MaybeRun = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="One of them.", autocompletion=_runs)
]
Project = Annotated[str | None, typer.Option(metavar="NAME", help="Instead of the token's.")]


def project_of(client: Client, named: str | None) -> str:
    """The project that is meant: the named one, the token's, or the one that is always there."""
    return named or client.me().project or "default"
