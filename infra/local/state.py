"""What runs, on disk: written before a process starts, so that a crash hides none of them."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infra.local.paths import write_private


@dataclass(frozen=True)
class ProcessIdentity:
    """One process: its number, and when it was started, because numbers are used again."""

    pid: int
    since: str


@dataclass(frozen=True)
class StackState:
    """What there is of one whole."""

    mark: str = field(default_factory=lambda: secrets.token_hex(16))
    """In the environment of everything that is started, and so what it is known by."""
    ports: dict[str, int] = field(default_factory=dict)
    components: dict[str, ProcessIdentity] = field(default_factory=dict)
    scratch: str | None = None
    """A short folder of Ray's, whose sockets' paths may have 107 characters."""

    def with_component(self, name: str, identity: ProcessIdentity | None) -> StackState:
        """With this part's process, or without the part."""
        components = {other: process for other, process in self.components.items() if other != name}
        return replace(
            self, components=components if identity is None else {**components, name: identity}
        )

    def with_ports(self, **ports: int) -> StackState:
        return replace(self, ports={**self.ports, **ports})


def read_state(file: Path) -> StackState | None:
    """What was written last; None where nothing was, or it can't be read."""
    try:
        raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        components = {name: ProcessIdentity(int(process["pid"]), str(process["since"]))
                 for name, process in raw["parts"].items()}  # fmt: skip
        ports = {str(name): int(port) for name, port in raw["ports"].items()}
        return StackState(str(raw["mark"]), ports, components, raw["scratch"])
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_state(file: Path, state: StackState) -> None:
    """In place of what was written before."""
    components = {name: vars(process) for name, process in state.components.items()}
    document = {
        "mark": state.mark,
        "ports": state.ports,
        "parts": components,
        "scratch": state.scratch,
    }
    write_private(file, json.dumps(document, indent=1) + "\n")
