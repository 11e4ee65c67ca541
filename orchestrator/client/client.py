"""The client: `Client(url, token)`, and behind it what the service has."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from orchestrator.client.adapters import Adapters
from orchestrator.client.admin import Projects, Tokens
from orchestrator.client.client_settings import load_settings
from orchestrator.client.pages import iterate_unpaged
from orchestrator.client.retry import RetryBudget
from orchestrator.client.runs import Runs
from orchestrator.client.schedules import Schedules
from orchestrator.client.transport import Transport, api_path
from orchestrator.client.values import ClusterResponse, MeResponse, make_parser


class ServiceClient:
    """One service, asked with one token; close it, or use it in a `with`."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        retry_budget: RetryBudget | None = None,
        on_retry: Callable[[str], None] | None = None,
    ) -> None:
        """`waiting` hears why a question has to be asked again, once for each question."""
        self.transport = Transport(load_settings(url, token=token), retry_budget, on_retry)
        self.runs = Runs(self.transport)
        self.adapters = Adapters(self.transport)
        self.schedules = Schedules(self.transport)
        self.projects = Projects(self.transport)
        self.tokens = Tokens(self.transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections."""
        self.transport.close()

    def list_clusters(self) -> list[ClusterResponse]:
        """The Ray clusters that the service submits to."""
        parse = make_parser(ClusterResponse, self.transport.settings.url)
        return list(iterate_unpaged(self.transport, api_path("clusters"), parse))

    def get_me(self) -> MeResponse:
        """Whose token this is."""
        return make_parser(MeResponse, self.transport.settings.url)(
            self.transport.request_json("GET", api_path("me"))
        )
