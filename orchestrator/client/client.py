"""The client: `Client(url, token)`, and behind it what the service has."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from orchestrator.client.adapters import Adapters
from orchestrator.client.house import Projects, Tokens
from orchestrator.client.pages import whole
from orchestrator.client.pauses import Patience
from orchestrator.client.runs import Runs
from orchestrator.client.schedules import Schedules
from orchestrator.client.settings import settings
from orchestrator.client.values import Cluster, Me, reader
from orchestrator.client.wire import Wire, at


class Client:
    """One service, asked with one token; close it, or use it in a `with`."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        patience: Patience | None = None,
        waiting: Callable[[str], None] | None = None,
    ) -> None:
        """`waiting` hears why a question has to be asked again, once for each question."""
        self.wire = Wire(settings(url, token=token), patience, waiting)
        self.runs = Runs(self.wire)
        self.adapters = Adapters(self.wire)
        self.schedules = Schedules(self.wire)
        self.projects = Projects(self.wire)
        self.tokens = Tokens(self.wire)

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
        self.wire.close()

    def clusters(self) -> list[Cluster]:
        """The Ray clusters that the service submits to."""
        read = reader(Cluster, self.wire.settings.service)
        return list(whole(self.wire, at("clusters"), read))

    def me(self) -> Me:
        """Whose token this is."""
        return reader(Me, self.wire.settings.service)(self.wire.json("GET", at("me")))
