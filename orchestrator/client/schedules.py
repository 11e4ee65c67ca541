"""Schedules: when the service makes runs by itself, and what came of each moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.client.pages import iterate_pages
from orchestrator.client.transport import Transport, api_path
from orchestrator.client.values import FiringResponse, ScheduleResponse, make_parser


class Schedules:
    """The service's schedules, each of a project."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._parse = make_parser(ScheduleResponse, transport.settings.url)

    def create(self, schedule: Mapping[str, Any]) -> ScheduleResponse:
        """A new one. Raises Refused, Conflict where the name is taken."""
        return self._parse(
            self._transport.request_json("POST", api_path("schedules"), body=dict(schedule))
        )

    def list(self, *, project: str | None = None) -> Iterator[ScheduleResponse]:
        """By project and name."""
        return iterate_pages(self._transport, api_path("schedules"), self._parse, project=project)

    def get(self, project: str, name: str) -> ScheduleResponse:
        """One of them. Raises NotThere."""
        return self._parse(
            self._transport.request_json("GET", api_path("schedules", project, name))
        )

    def update(self, schedule: ScheduleResponse, **changes: Any) -> ScheduleResponse:
        """Changes the one that was read. Raises Conflict where somebody else did meanwhile."""
        path = api_path("schedules", schedule.project, schedule.name)
        body = {**changes, "revision": schedule.revision}
        return self._parse(self._transport.request_json("PATCH", path, body=body))

    def delete(self, project: str, name: str) -> None:
        """Takes it away with its firings; its runs stay."""
        self._transport.request("DELETE", api_path("schedules", project, name))

    def list_firings(
        self, project: str, name: str, *, max_items: int | None = None
    ) -> Iterator[FiringResponse]:
        """What came of its moments, the newest first."""
        parse = make_parser(FiringResponse, self._transport.settings.url)
        return iterate_pages(
            self._transport,
            api_path("schedules", project, name, "firings"),
            parse,
            max_items=max_items,
        )
