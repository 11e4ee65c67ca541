"""Projects and tokens: limits and permissions."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.client.pages import iterate_unpaged
from orchestrator.client.transport import Resource, api_path
from orchestrator.schemas.admin import NewTokenResponse, ProjectResponse, TokenResponse


class Projects(Resource):
    """The service's projects."""

    def list(self) -> Iterator[ProjectResponse]:
        """Iterate over the projects that the token covers."""
        return iterate_unpaged(self._transport, api_path("projects"), ProjectResponse)

    def create(self, name: str, **limits: int | None) -> ProjectResponse:
        """Create a project."""
        body = {"name": name, **limits}
        return self._transport.request_value(
            ProjectResponse, "POST", api_path("projects"), body=body
        )

    def update(self, project: ProjectResponse, **limits: int | None) -> ProjectResponse:
        """Change limits of a project. Raise Conflict if it has changed since it was read."""
        return self._transport.request_value(
            ProjectResponse,
            "PATCH",
            api_path("projects", project.name),
            body={**limits, "revision": project.revision},
        )


class Tokens(Resource):
    """The service's tokens, for administrators."""

    def list(self) -> Iterator[TokenResponse]:
        """Iterate over all tokens, expired and revoked ones included."""
        return iterate_unpaged(self._transport, api_path("tokens"), TokenResponse)

    def create(
        self, label: str, scope: str, *, project: str | None = None, seconds: float | None = None
    ) -> NewTokenResponse:
        """Create a token. No later response contains its `secret`."""
        body = {"label": label, "scope": scope, "project": project, "seconds": seconds}
        return self._transport.request_value(
            NewTokenResponse, "POST", api_path("tokens"), body=body
        )

    def revoke(self, token: str) -> None:
        """Revoke a token, with immediate effect."""
        self._transport.request("DELETE", api_path("tokens", token))
