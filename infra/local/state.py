"""What runs, on disk: written before a process starts, so that a crash hides none of them."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infra.local.home import private


@dataclass(frozen=True)
class Started:
    """One process: its number, and when it was started, because numbers are used again."""

    pid: int
    since: str


@dataclass(frozen=True)
class State:
    """What there is of one whole."""

    mark: str = field(default_factory=lambda: secrets.token_hex(16))
    """In the environment of everything that is started, and so what it is known by."""
    ports: dict[str, int] = field(default_factory=dict)
    parts: dict[str, Started] = field(default_factory=dict)
    scratch: str | None = None
    """A short folder of Ray's, whose sockets' paths may have 107 characters."""

    def with_part(self, name: str, started: Started | None) -> State:
        """With this part's process, or without the part."""
        parts = {other: one for other, one in self.parts.items() if other != name}
        return replace(self, parts=parts if started is None else {**parts, name: started})

    def with_ports(self, **ports: int) -> State:
        return replace(self, ports={**self.ports, **ports})


def read_state(file: Path) -> State | None:
    """What was written last; None where nothing was, or it can't be read."""
    try:
        raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        parts = {name: Started(int(one["pid"]), str(one["since"]))
                 for name, one in raw["parts"].items()}  # fmt: skip
        ports = {str(name): int(port) for name, port in raw["ports"].items()}
        return State(str(raw["mark"]), ports, parts, raw["scratch"])
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_state(file: Path, state: State) -> None:
    """In place of what was written before."""
    parts = {name: vars(one) for name, one in state.parts.items()}
    whole = {"mark": state.mark, "ports": state.ports, "parts": parts, "scratch": state.scratch}
    private(file, json.dumps(whole, indent=1) + "\n")
