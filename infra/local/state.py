"""The running processes, on disk: written early, so that a crash hides none of them."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infra.local.paths import write_private


@dataclass(frozen=True)
class ProcessIdentity:
    """A process: its pid, and its start time, because pids are reused."""

    pid: int
    since: str


@dataclass(frozen=True)
class StackState:
    """The state of a local stack."""

    mark: str = field(default_factory=lambda: secrets.token_hex(16))
    """Value in the environment of every process of the stack, which identifies them."""
    ports: dict[str, int] = field(default_factory=dict)
    components: dict[str, ProcessIdentity] = field(default_factory=dict)
    scratch: str | None = None
    """Temporary folder of Ray; short, because a socket path has at most 107 characters."""

    def with_component(self, name: str, identity: ProcessIdentity | None) -> StackState:
        """Return the state with this process of a component, or without the component."""
        components = {other: process for other, process in self.components.items() if other != name}
        return replace(
            self, components=components if identity is None else {**components, name: identity}
        )

    def with_ports(self, **ports: int) -> StackState:
        return replace(self, ports={**self.ports, **ports})


def read_state(file: Path) -> StackState | None:
    """Return the recorded state, or None if there is no readable one."""
    try:
        raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        components = {name: ProcessIdentity(int(process["pid"]), str(process["since"]))
                 for name, process in raw["components"].items()}  # fmt: skip
        ports = {str(name): int(port) for name, port in raw["ports"].items()}
        return StackState(str(raw["mark"]), ports, components, raw["scratch"])
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_state(file: Path, state: StackState) -> None:
    """Replace the recorded state."""
    components = {name: vars(process) for name, process in state.components.items()}
    document = {
        "mark": state.mark,
        "ports": state.ports,
        "components": components,
        "scratch": state.scratch,
    }
    write_private(file, json.dumps(document, indent=1) + "\n")
