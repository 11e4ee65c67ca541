"""Runs of the service: submit, list, show, stop, delete, follow their log and events."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from jobs.errors import Fault
from orchestrator.client.errors import RequestRejected, UnexpectedResponse
from orchestrator.client.event_stream import OnRetry, follow_stream
from orchestrator.client.pages import iterate_pages
from orchestrator.client.transport import Resource, api_path
from orchestrator.schemas.base import ResponseSchema
from orchestrator.schemas.runs import (
    CheckResponse,
    DeletedRunResponse,
    RunDetailResponse,
    RunResponse,
    StartsResponse,
    SubmitRunRequest,
)
from orchestrator.schemas.streams import END_EVENT, EndResponse, EventResponse, LogTextResponse

Value = TypeVar("Value", bound=ResponseSchema)


@dataclass(frozen=True)
class LogSegment:
    """A part of a log and its end position; the last one has no text, but the final status."""

    text: str
    position: str | None
    status: str | None = None


def make_submission(spec: Mapping[str, Any], **options: Any) -> SubmitRunRequest:
    """Return a submission. An option of None is left to the service. Raise RequestRejected."""
    values = {name: value for name, value in options.items() if value is not None}
    try:
        return SubmitRunRequest(spec=dict(spec), **values)
    except ValidationError as error:
        faults = [Fault(".".join(map(str, item["loc"])), item["msg"]) for item in error.errors()]
        raise RequestRejected(faults) from error


class Runs(Resource):
    """The service's runs."""

    def submit(self, submission: SubmitRunRequest, *, key: str | None = None) -> RunResponse:
        """Submit a run. Retries use one idempotency key, so there is one run."""
        return self._transport.request_value(
            RunResponse,
            "POST",
            api_path("runs"),
            body=submission.model_dump(exclude_unset=True),
            key=key or secrets.token_hex(16),
        )

    def check(self, submission: SubmitRunRequest) -> CheckResponse:
        """Validate a submission without a run. Raise RequestRejected with all errors."""
        return self._transport.request_value(
            CheckResponse,
            "POST",
            api_path("runs", "check"),
            body=submission.model_dump(exclude_unset=True),
            repeatable=True,
        )

    def list(
        self,
        *,
        project: str | None = None,
        status: str | None = None,
        name: str | None = None,
        kind: str | None = None,
        max_items: int | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[RunResponse]:
        """Iterate over runs, the newest first."""
        return iterate_pages(
            self._transport,
            api_path("runs"),
            RunResponse,
            max_items=max_items,
            timeout_s=timeout_s,
            project=project,
            status=status,
            name=name,
            kind=kind,
        )

    def get(self, run: str, *, timeout_s: float | None = None) -> RunDetailResponse:
        """Return a run with its attempts. Raise MissingResource if there is none."""
        return self._transport.request_value(
            RunDetailResponse, "GET", api_path("runs", run), timeout_s=timeout_s
        )

    def get_starts(self, run: str) -> StartsResponse:
        """Return the phases of the run's starts. Raise MissingResource if there is no run."""
        return self._transport.request_value(StartsResponse, "GET", api_path("runs", run, "starts"))

    def get_spec(self, run: str) -> str:
        """Return the YAML spec that the run's job reads."""
        return self._transport.request("GET", api_path("runs", run, "spec")).text

    def stop(self, run: str) -> RunResponse:
        """Request the end of a run. A run that has ended stays as it is."""
        return self._transport.request_value(
            RunResponse, "POST", api_path("runs", run, "stop"), repeatable=True
        )

    def delete(self, run: str) -> DeletedRunResponse:
        """Delete a run that has ended, with its files. Raise Conflict if it has not ended."""
        return self._transport.request_value(DeletedRunResponse, "DELETE", api_path("runs", run))

    def follow_log(
        self, run: str, *, position: str | None = None, on_retry: OnRetry | None = None
    ) -> Iterator[LogSegment]:
        """Follow the log from a position to the end of the run, each byte exactly once."""
        path = api_path("runs", run, "log")
        for event in follow_stream(self._transport, path, last_id=position, on_retry=on_retry):
            position = event.id if event.id is not None else position
            if event.event == END_EVENT:
                yield LogSegment("", position, self._parse(EndResponse, event.data).status)
            else:
                yield LogSegment(self._parse(LogTextResponse, event.data).text, position)

    def read_log(self, run: str) -> Iterator[str]:
        """Read the log so far."""
        return self._transport.stream_text(api_path("runs", run, "log"), params={"follow": "false"})

    def follow_events(
        self, run: str, *, last_id: str | None = None, on_retry: OnRetry | None = None
    ) -> Iterator[EventResponse]:
        """Follow the events of a run, from the first one or after `last_id`, to its end."""
        path = api_path("runs", run, "events")
        for event in follow_stream(self._transport, path, last_id=last_id, on_retry=on_retry):
            if event.event != END_EVENT:
                yield self._parse(EventResponse, event.data)

    def _parse(self, value_type: type[Value], data: str) -> Value:
        try:
            body = json.loads(data)
        except ValueError:
            raise UnexpectedResponse(
                self._transport.settings.url, "an event without JSON"
            ) from None
        return self._transport.parse(value_type, body)
