"""Runs through the service: submit, list, look, stop, follow what they log and what happens."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.client.errors import UnexpectedResponse
from orchestrator.client.event_stream import END, OnRetry, follow_stream
from orchestrator.client.pages import iterate_pages
from orchestrator.client.transport import Transport, api_path
from orchestrator.client.values import CheckResponse, EventResponse, RunResponse, make_parser


@dataclass(frozen=True)
class SubmitRunRequest:
    """A run that is asked for; `spec` as in its YAML, with whole paths."""

    spec: Mapping[str, Any]
    kind: str = "finetune"
    project: str | None = None
    cluster: str | None = None
    priority: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As it is sent: what is not named is the service's to choose."""
        named = {"project": self.project, "cluster": self.cluster, "priority": self.priority}
        options = {key: value for key, value in named.items() if value is not None}
        return {"kind": self.kind, "spec": dict(self.spec), **options}


@dataclass(frozen=True)
class LogSegment:
    """A piece of a log, and where it ends; the last one has no text, and the run's final status."""

    text: str
    position: str | None
    status: str | None = None


class Runs:
    """The service's runs."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._parse = make_parser(RunResponse, transport.settings.url)

    def submit(self, submission: SubmitRunRequest, *, key: str | None = None) -> RunResponse:
        """The run. However often it has to be sent: under one key it is one run."""
        idempotency_key = key or secrets.token_hex(16)
        return self._parse(
            self._transport.request_json(
                "POST", api_path("runs"), body=submission.to_json(), key=idempotency_key
            )
        )

    def check(self, submission: SubmitRunRequest) -> CheckResponse:
        """What would be submitted; nothing is written. Raises Refused with all faults."""
        path = api_path("runs", "check")
        response = self._transport.request_json(
            "POST", path, body=submission.to_json(), repeatable=True
        )
        return make_parser(CheckResponse, self._transport.settings.url)(response)

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
        """The newest first."""
        filters = {"project": project, "status": status, "name": name, "kind": kind}
        return iterate_pages(
            self._transport,
            api_path("runs"),
            self._parse,
            max_items=max_items,
            timeout_s=timeout_s,
            **filters,
        )

    def get(self, run: str, *, timeout_s: float | None = None) -> RunResponse:
        """One run with its attempts. Raises NotThere."""
        return self._parse(
            self._transport.request_json("GET", api_path("runs", run), timeout_s=timeout_s)
        )

    def get_spec(self, run: str) -> str:
        """The YAML that its job reads."""
        return self._transport.request("GET", api_path("runs", run, "spec")).text

    def stop(self, run: str) -> RunResponse:
        """Asks for its end; a run that is over stays what it is."""
        return self._parse(
            self._transport.request_json("POST", api_path("runs", run, "stop"), repeatable=True)
        )

    def follow_log(
        self, run: str, *, position: str | None = None, on_retry: OnRetry | None = None
    ) -> Iterator[LogSegment]:
        """The log from a place on, as it is written, to the run's end: no byte twice or lost."""
        for event in follow_stream(
            self._transport, api_path("runs", run, "log"), last_id=position, on_retry=on_retry
        ):
            position = event.id if event.id is not None else position
            if event.event == END:
                yield LogSegment("", position, self._get_text(event.data, "status"))
            else:
                yield LogSegment(self._get_text(event.data, "text"), position)

    def read_log(self, run: str) -> Iterator[str]:
        """The log as far as it is written."""
        return self._transport.stream_text(api_path("runs", run, "log"), params={"follow": "false"})

    def follow_events(
        self, run: str, *, last_id: str | None = None, on_retry: OnRetry | None = None
    ) -> Iterator[EventResponse]:
        """What happened to it and what happens, to its end."""
        for event in follow_stream(
            self._transport, api_path("runs", run, "events"), last_id=last_id, on_retry=on_retry
        ):
            if event.event != END:
                yield make_parser(EventResponse, self._transport.settings.url)(
                    self._parse_object(event.data)
                )

    def _get_text(self, data: str, key: str) -> str:
        value = self._parse_object(data).get(key)
        if not isinstance(value, str):
            raise UnexpectedResponse(
                self._transport.settings.url, f"an event came without its {key}"
            )
        return value

    def _parse_object(self, data: str) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise UnexpectedResponse(
                self._transport.settings.url, "an event came that is no JSON object"
            )
        return value
