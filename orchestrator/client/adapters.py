"""Adapters as the service's registry knows them, and what their bare names mean."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.client.pages import iterate_pages
from orchestrator.client.transport import Transport, api_path
from orchestrator.client.values import (
    AdapterNameResponse,
    AdapterResponse,
    PointerResponse,
    make_parser,
)


class Adapters:
    """The service's adapters."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._parse = make_parser(AdapterResponse, transport.settings.url)

    def list(
        self, *, project: str | None = None, name: str | None = None
    ) -> Iterator[AdapterResponse]:
        """Every committed version."""
        return iterate_pages(
            self._transport, api_path("adapters"), self._parse, project=project, name=name
        )

    def resolve(self, name: str, *, store: str | None = None) -> AdapterNameResponse:
        """What a bare name means, and its versions. Raises NotThere."""
        response = self._transport.request_json(
            "GET", api_path("adapters", name), params={"store": store}
        )
        return make_parser(AdapterNameResponse, self._transport.settings.url)(response)

    def get(self, name: str, version: int, *, store: str | None = None) -> AdapterResponse:
        """One version with its manifest. Raises NotThere."""
        path = api_path("adapters", name, str(version))
        return self._parse(self._transport.request_json("GET", path, params={"store": store}))

    def promote(self, name: str, version: int, *, store: str | None = None) -> PointerResponse:
        """Lets the bare name mean this version; the same again is no move. Raises Conflict."""
        return self._move_pointer(
            api_path("adapters", name, "promote"), store, {"version": version}
        )

    def rollback(self, name: str, *, store: str | None = None) -> PointerResponse:
        """Lets it mean again what it meant before. Raises Conflict."""
        return self._move_pointer(api_path("adapters", name, "rollback"), store, None)

    def _move_pointer(
        self, path: str, store: str | None, body: dict[str, int] | None
    ) -> PointerResponse:
        response = self._transport.request_json("POST", path, body=body, params={"store": store})
        return make_parser(PointerResponse, self._transport.settings.url)(response)
