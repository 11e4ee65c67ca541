"""Adapters in the service's registry: list, show, promote, roll back."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.client.pages import iterate_pages
from orchestrator.client.transport import Resource, api_path
from orchestrator.schemas.adapters import (
    AdapterDetailResponse,
    AdapterNameResponse,
    AdapterResponse,
    PointerResponse,
    PromoteAdapterRequest,
)


class Adapters(Resource):
    """The service's adapters."""

    def list(
        self, *, project: str | None = None, name: str | None = None
    ) -> Iterator[AdapterResponse]:
        """Iterate over all committed versions."""
        path = api_path("adapters")
        return iterate_pages(self._transport, path, AdapterResponse, project=project, name=name)

    def resolve(self, name: str, *, store: str | None = None) -> AdapterNameResponse:
        """Return the current version of a name, and all its versions. Raise MissingResource."""
        return self._transport.request_value(
            AdapterNameResponse, "GET", api_path("adapters", name), params={"store": store}
        )

    def get(self, name: str, version: int, *, store: str | None = None) -> AdapterDetailResponse:
        """Return one version with its manifest. Raise MissingResource if there is none."""
        path = api_path("adapters", name, str(version))
        return self._transport.request_value(
            AdapterDetailResponse, "GET", path, params={"store": store}
        )

    def promote(self, name: str, version: int, *, store: str | None = None) -> PointerResponse:
        """Make this version the current one, if it is not. Raise Conflict."""
        body = PromoteAdapterRequest(version=version).model_dump()
        return self._transport.request_value(
            PointerResponse,
            "POST",
            api_path("adapters", name, "promote"),
            body=body,
            params={"store": store},
        )

    def rollback(self, name: str, *, store: str | None = None) -> PointerResponse:
        """Undo the last promotion that is still in effect. Raise Conflict."""
        path = api_path("adapters", name, "rollback")
        return self._transport.request_value(PointerResponse, "POST", path, params={"store": store})
