"""Projects and tokens: who may use how much, and who may do what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator.client.pages import iterate_unpaged
from orchestrator.client.transport import Transport, api_path
from orchestrator.client.values import ProjectResponse, TokenResponse, make_parser


class Projects:
    """The service's projects."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._parse = make_parser(ProjectResponse, transport.settings.url)

    def list(self) -> Iterator[ProjectResponse]:
        """Those that this token sees."""
        return iterate_unpaged(self._transport, api_path("projects"), self._parse)

    def create(self, name: str, **limits: int | None) -> ProjectResponse:
        """A new one."""
        return self._parse(
            self._transport.request_json(
                "POST", api_path("projects"), body={"name": name, **limits}
            )
        )

    def update(self, project: ProjectResponse, **limits: int | None) -> ProjectResponse:
        """Changes the named limits of the one that was read. Raises Conflict."""
        body = {**limits, "revision": project.revision}
        return self._parse(
            self._transport.request_json("PATCH", api_path("projects", project.name), body=body)
        )


class Tokens:
    """The service's tokens, for an admin."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._parse = make_parser(TokenResponse, transport.settings.url)

    def list(self) -> Iterator[TokenResponse]:
        """All of them, dead ones too."""
        return iterate_unpaged(self._transport, api_path("tokens"), self._parse)

    def create(
        self, label: str, scope: str, *, project: str | None = None, seconds: float | None = None
    ) -> TokenResponse:
        """A new one; its `secret` is told this once."""
        body: dict[str, Any] = {"label": label, "scope": scope}
        body |= {"project": project, "seconds": seconds}
        return self._parse(self._transport.request_json("POST", api_path("tokens"), body=body))

    def revoke(self, token: str) -> None:
        """From now on nobody is known by it."""
        self._transport.request("DELETE", api_path("tokens", token))
