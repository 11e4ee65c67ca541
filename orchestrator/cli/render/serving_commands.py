"""What serves an adapter, and the commands for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from orchestrator.cli.console import print_line


class ServerCommands(Protocol):
    """What can serve an adapter, from its store or from a service."""

    @property
    def server(self) -> str: ...
    @property
    def prepare(self) -> str: ...
    @property
    def command(self) -> str: ...
    @property
    def note(self) -> str: ...


def show_serving_options(options: Iterable[ServerCommands]) -> None:
    """Print what serves the adapter, each with commands on lines of their own, to be copied."""
    for option in options:
        print_line(f"\nserved by {option.server}{f' ({option.note})' if option.note else ''}:")
        for command in filter(None, (option.prepare, option.command)):
            print_line(f"    {command}")
