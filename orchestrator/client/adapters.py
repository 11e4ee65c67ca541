"""Adapters as the service's registry knows them, and what their bare names mean."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.client.pages import items
from orchestrator.client.values import Adapter, Named, Pointer, reader
from orchestrator.client.wire import Wire, at


class Adapters:
    """The service's adapters."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._read = reader(Adapter, wire.settings.service)

    def list(self, *, project: str | None = None, name: str | None = None) -> Iterator[Adapter]:
        """Every committed version."""
        return items(self._wire, at("adapters"), self._read, project=project, name=name)

    def named(self, name: str, *, store: str | None = None) -> Named:
        """What a bare name means, and its versions. Raises NotThere."""
        answer = self._wire.json("GET", at("adapters", name), params={"store": store})
        return reader(Named, self._wire.settings.service)(answer)

    def get(self, name: str, version: int, *, store: str | None = None) -> Adapter:
        """One version with its manifest. Raises NotThere."""
        path = at("adapters", name, str(version))
        return self._read(self._wire.json("GET", path, params={"store": store}))

    def promote(self, name: str, version: int, *, store: str | None = None) -> Pointer:
        """Lets the bare name mean this version; the same again is no move. Raises Conflict."""
        return self._moved(at("adapters", name, "promote"), store, {"version": version})

    def rollback(self, name: str, *, store: str | None = None) -> Pointer:
        """Lets it mean again what it meant before. Raises Conflict."""
        return self._moved(at("adapters", name, "rollback"), store, None)

    def _moved(self, path: str, store: str | None, body: dict[str, int] | None) -> Pointer:
        answer = self._wire.json("POST", path, body=body, params={"store": store})
        return reader(Pointer, self._wire.settings.service)(answer)
