"""Projects, tokens and the audit log: limits, permissions, and who changed what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.client.pages import iterate_pages, iterate_unpaged
from orchestrator.client.transport import Resource, api_path
from orchestrator.schemas.admin import (
    NewTokenResponse,
    ProjectDetailResponse,
    ProjectResponse,
    TokenResponse,
)
from orchestrator.schemas.audit_entries import AuditEntryResponse

Limit = int | Sequence[str] | None


class Projects(Resource):
    """The service's projects."""

    def list(self) -> Iterator[ProjectResponse]:
        """Iterate over the projects that the token covers."""
        return iterate_unpaged(self._transport, api_path("projects"), ProjectResponse)

    def get(self, name: str) -> ProjectDetailResponse:
        """Return a project with its limits and what it uses."""
        return self._transport.request_value(
            ProjectDetailResponse, "GET", api_path("projects", name)
        )

    def create(self, name: str, **limits: Limit) -> ProjectResponse:
        """Create a project with limits, and with places and models that its runs may read."""
        body = {"name": name, **limits}
        return self._transport.request_value(
            ProjectResponse, "POST", api_path("projects"), body=body
        )

    def update(self, project: ProjectResponse, **limits: Limit) -> ProjectResponse:
        """Change limits, places or models. Raise Conflict if it has changed since it was read."""
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


class AuditLog(Resource):
    """The service's audit log, for administrators."""

    def list(
        self,
        *,
        project: str | None = None,
        action: str | None = None,
        kind: str | None = None,
        object: str | None = None,
        token: str | None = None,
        since: float | None = None,
        until: float | None = None,
        max_items: int | None = None,
    ) -> Iterator[AuditEntryResponse]:
        """Iterate over changes, the newest first, from `since` on and before `until`."""
        return iterate_pages(
            self._transport,
            api_path("audit"),
            AuditEntryResponse,
            max_items=max_items,
            project=project,
            action=action,
            kind=kind,
            object=object,
            token=token,
            since=since,
            until=until,
        )
