"""Projects and tokens: who may use how much, and who may do what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator.client.pages import whole
from orchestrator.client.values import Project, Token, reader
from orchestrator.client.wire import Wire, at


class Projects:
    """The service's projects."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._read = reader(Project, wire.settings.service)

    def list(self) -> Iterator[Project]:
        """Those that this token sees."""
        return whole(self._wire, at("projects"), self._read)

    def add(self, name: str, **limits: int | None) -> Project:
        """A new one."""
        return self._read(self._wire.json("POST", at("projects"), body={"name": name, **limits}))

    def set(self, there: Project, **limits: int | None) -> Project:
        """Changes the named limits of the one that was read. Raises Conflict."""
        body = {**limits, "revision": there.revision}
        return self._read(self._wire.json("PATCH", at("projects", there.name), body=body))


class Tokens:
    """The service's tokens, for an admin."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._read = reader(Token, wire.settings.service)

    def list(self) -> Iterator[Token]:
        """All of them, dead ones too."""
        return whole(self._wire, at("tokens"), self._read)

    def create(
        self, label: str, scope: str, *, project: str | None = None, seconds: float | None = None
    ) -> Token:
        """A new one; its `secret` is told this once."""
        body: dict[str, Any] = {"label": label, "scope": scope}
        body |= {"project": project, "seconds": seconds}
        return self._read(self._wire.json("POST", at("tokens"), body=body))

    def revoke(self, token: str) -> None:
        """From now on nobody is known by it."""
        self._wire.ask("DELETE", at("tokens", token))
