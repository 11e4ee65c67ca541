"""Deployments of the service: deploy an adapter, show, roll back, remove."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.client.pages import iterate_pages
from orchestrator.client.transport import Resource, api_path
from orchestrator.schemas.deployment_schemas import DeploymentDetailResponse, DeploymentResponse


class Deployments(Resource):
    """The service's deployments, each of which belongs to a project."""

    def create(self, deployment: Mapping[str, Any]) -> DeploymentDetailResponse:
        """Deploy an adapter, or change its deployment. Raise RequestRejected or Conflict."""
        return self._transport.request_value(
            DeploymentDetailResponse, "POST", api_path("deployments"), body=dict(deployment)
        )

    def list(self, *, project: str | None = None) -> Iterator[DeploymentResponse]:
        """Iterate over the deployments of a project, sorted by store and name."""
        path = api_path("deployments")
        return iterate_pages(self._transport, path, DeploymentResponse, project=project)

    def get(
        self, name: str, *, project: str | None = None, store: str | None = None
    ) -> DeploymentDetailResponse:
        """Return one deployment. Raise MissingResource if there is none."""
        return self._transport.request_value(
            DeploymentDetailResponse,
            "GET",
            api_path("deployments", name),
            params={"project": project, "store": store},
        )

    def rollback(
        self, name: str, *, project: str | None = None, store: str | None = None
    ) -> DeploymentDetailResponse:
        """Answer with the version before, at once. Raise Conflict if there is none."""
        return self._transport.request_value(
            DeploymentDetailResponse,
            "POST",
            api_path("deployments", name, "rollback"),
            params={"project": project, "store": store},
        )

    def remove(
        self, name: str, *, project: str | None = None, store: str | None = None
    ) -> DeploymentDetailResponse:
        """Let the service remove a deployment from its server, and then its record."""
        return self._transport.request_value(
            DeploymentDetailResponse,
            "DELETE",
            api_path("deployments", name),
            params={"project": project, "store": store},
        )
