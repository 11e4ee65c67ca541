"""The root group of the command line: it lists commands from a table and loads only the one used.

Help and the completion of names take a fifth of a second this way; importing all commands would
take three times as long.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from orchestrator.cli.command_table import COMMANDS, CommandEntry
from orchestrator.cli.console import CommandGroup


class LazyCommands(CommandGroup):
    """A group whose commands are stubs with a line of help until one of them is used."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: _make_stub(name, entry) for name, entry in COMMANDS.items()}

    # Any: Typer has its own click under a private name.
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the loaded command, to run it or to complete its arguments."""
        name, stub, rest = super().resolve_command(ctx, args)
        return name, None if stub is None else load_command(stub.name or ""), rest


def load_command(name: str) -> TyperCommand | TyperGroup:
    """Import and return the command of this name. Raise KeyError."""
    module, _, command_name = COMMANDS[name].target.partition(":")
    group = get_group(import_module(module).app)
    group.name = name
    command: Any = group.commands[command_name] if command_name else group
    loaded: TyperCommand | TyperGroup = command
    return loaded


def _make_stub(name: str, entry: CommandEntry) -> TyperCommand:
    return TyperCommand(name, help=entry.help, rich_help_panel=entry.panel)
