"""Schedules: when the service makes runs by itself, and what came of each moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.client.pages import items
from orchestrator.client.values import Firing, Schedule, reader
from orchestrator.client.wire import Wire, at


class Schedules:
    """The service's schedules, each of a project."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._read = reader(Schedule, wire.settings.service)

    def add(self, asked: Mapping[str, Any]) -> Schedule:
        """A new one. Raises Refused, Conflict where the name is taken."""
        return self._read(self._wire.json("POST", at("schedules"), body=dict(asked)))

    def list(self, *, project: str | None = None) -> Iterator[Schedule]:
        """By project and name."""
        return items(self._wire, at("schedules"), self._read, project=project)

    def get(self, project: str, name: str) -> Schedule:
        """One of them. Raises NotThere."""
        return self._read(self._wire.json("GET", at("schedules", project, name)))

    def change(self, there: Schedule, **changes: Any) -> Schedule:
        """Changes the one that was read. Raises Conflict where somebody else did meanwhile."""
        path = at("schedules", there.project, there.name)
        body = {**changes, "revision": there.revision}
        return self._read(self._wire.json("PATCH", path, body=body))

    def remove(self, project: str, name: str) -> None:
        """Takes it away with its firings; its runs stay."""
        self._wire.ask("DELETE", at("schedules", project, name))

    def firings(self, project: str, name: str, *, most: int | None = None) -> Iterator[Firing]:
        """What came of its moments, the newest first."""
        read = reader(Firing, self._wire.settings.service)
        return items(self._wire, at("schedules", project, name, "firings"), read, most=most)
