"""Adapters as the service's registry knows them, and what their bare names mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator.client.pages import items
from orchestrator.client.values import Adapter, reader
from orchestrator.client.wire import Wire, at


class Adapters:
    """The service's adapters."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._read = reader(Adapter, wire.settings.service)

    def list(self, *, project: str | None = None, name: str | None = None) -> Iterator[Adapter]:
        """Every committed version."""
        return items(self._wire, at("adapters"), self._read, project=project, name=name)

    def get(self, name: str, version: int | None = None, *, store: str | None = None) -> Adapter:
        """A version, or what the bare name means."""
        parts = () if version is None else (str(version),)
        path = at("adapters", name, *parts)
        return self._read(self._wire.json("GET", path, params={"store": store}))

    def promote(self, name: str, version: int, *, store: str | None = None) -> Any:
        """Lets the bare name mean this version. Raises Conflict."""
        path = at("adapters", name, "promote")
        return self._wire.json("POST", path, body={"version": version}, params={"store": store})

    def rollback(self, name: str, *, store: str | None = None) -> Any:
        """Lets it mean again what it meant before. Raises Conflict."""
        path = at("adapters", name, "rollback")
        return self._wire.json("POST", path, params={"store": store})
