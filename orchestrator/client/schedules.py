"""Schedules: when the service submits runs by itself, and the outcome of each firing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.client.pages import iterate_pages
from orchestrator.client.transport import Resource, api_path
from orchestrator.schemas.schedules import FiringResponse, ScheduleResponse


class Schedules(Resource):
    """The service's schedules, each of which belongs to a project."""

    def create(self, schedule: Mapping[str, Any]) -> ScheduleResponse:
        """Create a schedule. Raise RequestRejected, or Conflict if the name is in use."""
        return self._transport.request_value(
            ScheduleResponse, "POST", api_path("schedules"), body=dict(schedule)
        )

    def list(self, *, project: str | None = None) -> Iterator[ScheduleResponse]:
        """Iterate over schedules, sorted by project and name."""
        path = api_path("schedules")
        return iterate_pages(self._transport, path, ScheduleResponse, project=project)

    def get(self, project: str, name: str) -> ScheduleResponse:
        """Return one schedule. Raise MissingResource if there is none."""
        path = api_path("schedules", project, name)
        return self._transport.request_value(ScheduleResponse, "GET", path)

    def update(self, schedule: ScheduleResponse, **changes: Any) -> ScheduleResponse:
        """Change a schedule. Raise Conflict if it has changed since it was read."""
        return self._transport.request_value(
            ScheduleResponse,
            "PATCH",
            api_path("schedules", schedule.project, schedule.name),
            body={**changes, "revision": schedule.revision},
        )

    def delete(self, project: str, name: str) -> None:
        """Delete a schedule and its firings. Its runs stay."""
        self._transport.request("DELETE", api_path("schedules", project, name))

    def list_firings(
        self, project: str, name: str, *, max_items: int | None = None
    ) -> Iterator[FiringResponse]:
        """Iterate over the firings of a schedule, the newest first."""
        path = api_path("schedules", project, name, "firings")
        return iterate_pages(self._transport, path, FiringResponse, max_items=max_items)
