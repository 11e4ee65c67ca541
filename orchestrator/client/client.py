"""The client: `ServiceClient(url, token)` and its resources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from orchestrator.client.adapters import Adapters
from orchestrator.client.admin import AuditLog, Projects, Tokens
from orchestrator.client.client_settings import load_settings
from orchestrator.client.deployment_client import Deployments
from orchestrator.client.pages import iterate_unpaged
from orchestrator.client.retry import RetryBudget
from orchestrator.client.runs import Runs
from orchestrator.client.schedules import Schedules
from orchestrator.client.transport import Transport, api_path
from orchestrator.schemas.admin import ClusterResponse, TokenResponse


class ServiceClient:
    """A client of one service with one token. Close it, or use it in a `with` block."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        retry_budget: RetryBudget | None = None,
        on_retry: Callable[[str], None] | None = None,
    ) -> None:
        """Connect lazily. `on_retry` gets the reason of a retry, once for each request."""
        self.transport = Transport(load_settings(url, token=token), retry_budget, on_retry)
        self.runs = Runs(self.transport)
        self.adapters = Adapters(self.transport)
        self.deployments = Deployments(self.transport)
        self.schedules = Schedules(self.transport)
        self.projects = Projects(self.transport)
        self.tokens = Tokens(self.transport)
        self.audit_log = AuditLog(self.transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.transport.close()

    def list_clusters(self) -> list[ClusterResponse]:
        """Return the Ray clusters that the service submits to."""
        return list(iterate_unpaged(self.transport, api_path("clusters"), ClusterResponse))

    def get_me(self) -> TokenResponse:
        """Return the token of this client, without its secret."""
        return self.transport.request_value(TokenResponse, "GET", api_path("me"))
